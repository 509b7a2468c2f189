package main

// The control API: what the laboratory's own tools ask and order, HTTP and JSON on loopback.

import (
	"encoding/json"
	"fmt"
	"net/http"
	"sort"
	"strconv"
	"strings"

	"github.com/vmware/govmomi/simulator"
)

type diskView struct {
	VM            string         `json:"vm"`
	VMMoref       string         `json:"vm_moref"`
	Datacenter    string         `json:"datacenter"`
	Key           int32          `json:"key"`
	Label         string         `json:"label"`
	CapacityBytes int64          `json:"capacity_bytes"`
	Thin          bool           `json:"thin"`
	Mode          string         `json:"mode"`
	Eager         bool           `json:"eager"`
	UUID          string         `json:"uuid"`
	LiveFile      string         `json:"live_file"`
	LivePath      string         `json:"live_path"`
	BaseFile      string         `json:"base_file"`
	Snapshots     []snapshotView `json:"snapshots"`
}

type snapshotView struct {
	Moref    string `json:"moref"`
	Name     string `json:"name"`
	File     string `json:"file,omitempty"`
	ChangeID string `json:"change_id,omitempty"`
}

type vmView struct {
	Name                string         `json:"name"`
	Moref               string         `json:"moref"`
	Datacenter          string         `json:"datacenter"`
	Host                string         `json:"host"`
	Power               string         `json:"power"`
	Annotation          string         `json:"annotation"`
	CBT                 bool           `json:"cbt"`
	ConsolidationNeeded bool           `json:"consolidation_needed"`
	Snapshots           []snapshotView `json:"snapshots"`
	Files               []string       `json:"files"`
}

func (l *lab) control() http.Handler {
	m := http.NewServeMux()
	get := func(path string, f func() interface{}) {
		m.HandleFunc(path, func(w http.ResponseWriter, r *http.Request) {
			if r.Method != http.MethodGet {
				sendJSON(w, http.StatusMethodNotAllowed, map[string]string{"error": "GET only"})
				return
			}
			sendJSON(w, http.StatusOK, f())
		})
	}
	post := func(path string, f func(r *http.Request) (interface{}, error)) {
		m.HandleFunc(path, func(w http.ResponseWriter, r *http.Request) {
			if r.Method != http.MethodPost {
				sendJSON(w, http.StatusMethodNotAllowed, map[string]string{"error": "POST only"})
				return
			}
			v, err := f(r)
			if err != nil {
				sendJSON(w, http.StatusBadRequest, map[string]string{"error": err.Error()})
				return
			}
			sendJSON(w, http.StatusOK, v)
		})
	}
	get("/disks", func() interface{} { return l.diskViews() })
	get("/vms", func() interface{} { return l.vmViews() })
	get("/stats", func() interface{} { return l.statsNow() })
	post("/stats/reset", func(*http.Request) (interface{}, error) { l.stats.reset(); return map[string]bool{"reset": true}, nil })
	post("/sessions/drop", func(*http.Request) (interface{}, error) { return map[string]int{"dropped": l.sessions.dropAll()}, nil })
	post("/vms/", l.vmOrder)
	post("/latency", l.latencies.set)
	m.HandleFunc("/faults", l.serveFaults)
	m.HandleFunc("/faults/", l.serveFaults)
	return m
}

func sendJSON(w http.ResponseWriter, code int, v interface{}) {
	b, err := json.Marshal(v)
	if err != nil {
		code, b = http.StatusInternalServerError, []byte(`{"error":"cannot encode"}`)
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	_, _ = w.Write(b)
}

func sortedVMs() []*simulator.VirtualMachine {
	vms := allVMs()
	sort.Slice(vms, func(i, j int) bool {
		if vms[i].Name != vms[j].Name {
			return vms[i].Name < vms[j].Name
		}
		return vms[i].Self.Value < vms[j].Self.Value
	})
	return vms
}

func datacenterName(vm *simulator.VirtualMachine) string {
	if dc := datacenterOf(vm); dc != nil {
		return dc.Name
	}
	return ""
}

func (l *lab) diskViews() []diskView {
	out := []diskView{}
	for _, vm := range sortedVMs() {
		unlock := l.lockVM(vm.Self)
		l.world.RLock()
		for _, d := range disksOf(vm.Config.Hardware.Device) {
			files := chainOf(d.backing)
			v := diskView{VM: vm.Name, VMMoref: vm.Self.Value, Datacenter: datacenterName(vm), Key: d.disk.Key,
				Label: d.disk.DeviceInfo.GetDescription().Label, CapacityBytes: d.capacity(), Thin: isTrue(d.backing.ThinProvisioned),
				Mode: d.backing.DiskMode, Eager: isTrue(d.backing.EagerlyScrub), UUID: d.backing.Uuid, LiveFile: flatPath(vm, files[0]), LivePath: files[0],
				BaseFile: flatPath(vm, files[len(files)-1]), Snapshots: []snapshotView{}}
			for _, s := range snapshotsOf(vm) {
				for _, z := range disksOf(s.Config.Hardware.Device) {
					if z.disk.Key == d.disk.Key {
						v.Snapshots = append(v.Snapshots, snapshotView{Moref: s.Self.Value, Name: findNode(treeOf(vm), s.Self).Name,
							File: flatPath(vm, z.backing.FileName), ChangeID: z.backing.ChangeId})
					}
				}
			}
			out = append(out, v)
		}
		l.world.RUnlock()
		unlock()
	}
	return out
}

func (l *lab) vmViews() []vmView {
	l.world.RLock()
	defer l.world.RUnlock()
	out := []vmView{}
	for _, vm := range sortedVMs() {
		v := vmView{Name: vm.Name, Moref: vm.Self.Value, Datacenter: datacenterName(vm), Power: "off", Annotation: vm.Config.Annotation,
			CBT: cbtOn(vm), ConsolidationNeeded: isTrue(vm.Runtime.ConsolidationNeeded), Snapshots: []snapshotView{}, Files: []string{}}
		if poweredOn(vm) {
			v.Power = "on"
		}
		if h := l.hosts[vm.Runtime.Host.Value]; h != nil {
			v.Host = h.name
		}
		for _, s := range snapshotsOf(vm) {
			v.Snapshots = append(v.Snapshots, snapshotView{Moref: s.Self.Value, Name: findNode(treeOf(vm), s.Self).Name})
		}
		for f := range filesOf(vm).parent {
			v.Files = append(v.Files, f)
		}
		sort.Strings(v.Files)
		out = append(out, v)
	}
	return out
}

func (l *lab) statsNow() statsView {
	v := l.stats.view()
	v.Sessions, v.Logins, v.LoginsRefused = l.sessions.count()
	l.mu.Lock()
	v.TicketsUnused = len(l.tickets)
	l.mu.Unlock()
	return v
}

// vmOrder serves POST /vms/{name}/power-loss.
func (l *lab) vmOrder(r *http.Request) (interface{}, error) {
	parts := strings.Split(strings.TrimPrefix(r.URL.Path, "/vms/"), "/")
	if len(parts) != 2 || parts[1] != "power-loss" {
		return nil, fmt.Errorf("unknown order %s", r.URL.Path)
	}
	for _, vm := range sortedVMs() {
		if vm.Name == parts[0] {
			defer l.lockVM(vm.Self)()
			l.loseTracking(vm, 0)
			return map[string]string{"vm": vm.Name, "tracking": "lost"}, nil
		}
	}
	return nil, fmt.Errorf("no VM named %q", parts[0])
}

func (l *lab) serveFaults(w http.ResponseWriter, r *http.Request) {
	id, _ := strconv.Atoi(strings.TrimPrefix(r.URL.Path, "/faults/"))
	switch r.Method {
	case http.MethodGet:
		sendJSON(w, http.StatusOK, l.faults.all())
	case http.MethodDelete:
		sendJSON(w, http.StatusOK, map[string]int{"removed": l.faults.remove(id)})
	case http.MethodPost:
		var f fault
		d := json.NewDecoder(r.Body)
		d.DisallowUnknownFields()
		err := d.Decode(&f)
		if err == nil {
			f, err = l.faults.add(f)
		}
		if err != nil {
			sendJSON(w, http.StatusBadRequest, map[string]string{"error": err.Error()})
			return
		}
		sendJSON(w, http.StatusOK, f)
	default:
		sendJSON(w, http.StatusMethodNotAllowed, map[string]string{"error": "GET, POST or DELETE"})
	}
}
