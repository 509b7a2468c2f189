package main

// Counters that the control API shows.

import "sync"

type hostStats struct {
	ConnectionsOpen  int   `json:"connections_open"`
	ConnectionsTotal int   `json:"connections_total"`
	BytesRead        int64 `json:"bytes_read"`
	BytesWritten     int64 `json:"bytes_written"`
	ReadRequests     int64 `json:"read_requests"`
	WriteRequests    int64 `json:"write_requests"`
	AllocationCalls  int64 `json:"allocation_queries"`
	WireBytesSent    int64 `json:"wire_bytes_sent"`
	MaxInFlight      int   `json:"max_in_flight"`
	RecordStalls     int64 `json:"record_stalls"`
}

type statTable struct {
	mu        sync.Mutex
	hosts     map[string]*hostStats
	diskRead  map[string]int64 // "[ds] path" -> bytes
	diskWrite map[string]int64
	calls     map[string]int64
}

func newStatTable() *statTable {
	t := &statTable{hosts: map[string]*hostStats{}}
	t.reset()
	return t
}

func (t *statTable) reset() {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, h := range t.hosts {
		*h = hostStats{ConnectionsOpen: h.ConnectionsOpen}
	}
	t.diskRead, t.diskWrite, t.calls = map[string]int64{}, map[string]int64{}, map[string]int64{}
}

func (t *statTable) soap(method string) {
	t.mu.Lock()
	t.calls[method]++
	t.mu.Unlock()
}

func (t *statTable) host(name string, f func(*hostStats)) {
	t.mu.Lock()
	defer t.mu.Unlock()
	h := t.hosts[name]
	if h == nil {
		h = &hostStats{}
		t.hosts[name] = h
	}
	f(h)
}

func (t *statTable) disk(path string, read, written int64) {
	t.mu.Lock()
	t.diskRead[path] += read
	t.diskWrite[path] += written
	t.mu.Unlock()
}

type statsView struct {
	Hosts            map[string]hostStats `json:"hosts"`
	DiskBytesRead    map[string]int64     `json:"disk_bytes_read"`
	DiskBytesWritten map[string]int64     `json:"disk_bytes_written"`
	SOAPCalls        map[string]int64     `json:"soap_calls"`
	Sessions         int                  `json:"sessions"`
	Logins           int                  `json:"logins"`
	LoginsRefused    int                  `json:"logins_refused"`
	TicketsUnused    int                  `json:"tickets_unused"`
}

func (t *statTable) view() statsView {
	t.mu.Lock()
	defer t.mu.Unlock()
	v := statsView{Hosts: map[string]hostStats{}, DiskBytesRead: map[string]int64{}, DiskBytesWritten: map[string]int64{}, SOAPCalls: map[string]int64{}}
	for k, h := range t.hosts {
		v.Hosts[k] = *h
	}
	for k, n := range t.diskRead {
		if n > 0 {
			v.DiskBytesRead[k] = n
		}
	}
	for k, n := range t.diskWrite {
		if n > 0 {
			v.DiskBytesWritten[k] = n
		}
	}
	for k, n := range t.calls {
		v.SOAPCalls[k] = n
	}
	return v
}
