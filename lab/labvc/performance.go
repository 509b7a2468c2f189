package main

// Read latency of datastores in the real-time performance counters: as slow as the control API says.

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"path"
	"sync"
	"time"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/types"
	"github.com/vmware/govmomi/vim25/xml"
)

const (
	realtimeS     = 20
	quietMs       = 1 // what a datastore shows of which nothing was said
	quietReads    = 10
	notMeasured   = -1
	datastoreUnit = "datastore"

	latencyCounter = "totalReadLatency"
	readsCounter   = "numberReadAveraged"
)

// latency is what the hosts measure of one datastore. Unmeasured: nothing at all.
type latency struct {
	Datastore  string `json:"datastore"`
	ReadMs     int64  `json:"read_ms"`
	Reads      *int64 `json:"reads_per_s,omitempty"`
	Host       string `json:"host,omitempty"` // only this one; empty: all
	Unmeasured bool   `json:"unmeasured,omitempty"`
	AgeS       int    `json:"age_s,omitempty"` // how old the newest sample is
}

type latencyTable struct {
	mu   sync.Mutex
	list []latency
}

func (t *latencyTable) set(r *http.Request) (interface{}, error) {
	var l latency
	d := json.NewDecoder(r.Body)
	d.DisallowUnknownFields()
	if err := d.Decode(&l); err != nil {
		return nil, err
	}
	if l.Datastore == "" || l.ReadMs < 0 {
		return nil, fmt.Errorf("a datastore and a latency that is not negative are needed")
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	kept := []latency{l}
	for _, o := range t.list {
		if o.Datastore != l.Datastore || o.Host != l.Host {
			kept = append(kept, o)
		}
	}
	t.list = kept
	return l, nil
}

// of finds what was said of a datastore on a host; what names the host counts more.
func (t *latencyTable) of(datastore, host string) latency {
	t.mu.Lock()
	defer t.mu.Unlock()
	found := latency{ReadMs: quietMs}
	for _, o := range t.list {
		if o.Datastore == datastore && (o.Host == host || o.Host == "" && found.Host == "") {
			found = o
		}
	}
	return found
}

// queryPerf answers questions about hosts' datastores; every other one is the simulator's.
func (l *lab) queryPerf(q *request) {
	req, err := q.typed()
	if err != nil {
		q.fail(invalidArgument("querySpec"))
		return
	}
	specs := req.(*types.QueryPerf).QuerySpec
	names := datastoreCounters(q.call.This.ref())
	for _, s := range specs {
		for _, m := range s.MetricId {
			if names[m.CounterId] == "" || s.Entity.Type != "HostSystem" {
				l.pass(q)
				return
			}
		}
	}
	out := []types.PerfEntityMetric{}
	for _, s := range specs {
		out = append(out, l.hostSeries(s, names))
	}
	q.answerPerf(out)
}

// datastoreCounters are the numbers of the two counters, as this server has them.
func datastoreCounters(manager types.ManagedObjectReference) map[int32]string {
	names := map[int32]string{}
	pm, ok := simulator.Map.Get(manager).(*simulator.PerformanceManager)
	if !ok {
		return names
	}
	for _, c := range pm.PerfCounter {
		if c.GroupInfo.GetElementDescription().Key != datastoreUnit {
			continue
		}
		switch k := c.NameInfo.GetElementDescription().Key; k {
		case latencyCounter, readsCounter:
			names[c.Key] = k
		}
	}
	return names
}

// hostSeries answers one host's part. Instances that it does not mount have no series.
func (l *lab) hostSeries(s types.PerfQuerySpec, names map[int32]string) types.PerfEntityMetric {
	out := types.PerfEntityMetric{}
	out.Entity = s.Entity
	l.world.RLock()
	defer l.world.RUnlock()
	host, ok := simulator.Map.Get(s.Entity).(*simulator.HostSystem)
	if !ok {
		return out
	}
	samples := int(s.MaxSample)
	if samples < 1 || samples > 180 {
		samples = 1
	}
	oldest := 0
	for _, m := range s.MetricId {
		ds := datastoreByInstance(host, m.Instance)
		if ds == nil {
			continue
		}
		said := l.latencies.of(ds.Name, host.Name)
		if said.AgeS > oldest {
			oldest = said.AgeS
		}
		value := said.ReadMs
		if names[m.CounterId] == readsCounter {
			value = quietReads
			if said.Reads != nil {
				value = *said.Reads
			}
		}
		if said.Unmeasured {
			value = notMeasured
		}
		series := &types.PerfMetricIntSeries{Value: make([]int64, samples)}
		series.Id = m
		for i := range series.Value {
			series.Value[i] = value
		}
		out.Value = append(out.Value, series)
	}
	end := time.Now().Add(-time.Duration(oldest) * time.Second)
	for i := samples - 1; i >= 0; i-- {
		out.SampleInfo = append(out.SampleInfo, types.PerfSampleInfo{Timestamp: end.Add(-time.Duration(i*realtimeS) * time.Second), Interval: realtimeS})
	}
	return out
}

// datastoreByInstance finds what a host mounts by the last part of its URL, as vCenter names instances.
func datastoreByInstance(host *simulator.HostSystem, instance string) *simulator.Datastore {
	for _, ref := range host.Datastore {
		ds, ok := simulator.Map.Get(ref).(*simulator.Datastore)
		if ok && path.Base(ds.Summary.Url) == instance {
			return ds
		}
	}
	return nil
}

func (q *request) answerPerf(metrics []types.PerfEntityMetric) {
	var out bytes.Buffer
	e := xml.NewEncoder(&out)
	for _, m := range metrics {
		start := xml.StartElement{Name: xml.Name{Local: "returnval"}, Attr: []xml.Attr{
			{Name: xml.Name{Local: "xsi:type"}, Value: "PerfEntityMetric"}}}
		if err := e.EncodeElement(m, start); err != nil {
			panic(fmt.Sprintf("encode %T: %s", m, err))
		}
	}
	q.answer(out.String())
}
