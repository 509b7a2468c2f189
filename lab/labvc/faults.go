package main

// Faults on request: what shall go wrong, how often, and how often it did.

import (
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/vmware/govmomi/vim25/types"
)

// fault is one order to fail. Count 0 means until it is deleted.
type fault struct {
	ID    int    `json:"id"`
	Kind  string `json:"kind"`
	Count int    `json:"count,omitempty"`
	Skip  int    `json:"skip,omitempty"` // so many chances pass before the first time
	Fired int    `json:"fired"`

	Host         string  `json:"host,omitempty"`
	PathContains string  `json:"path_contains,omitempty"`
	VM           string  `json:"vm,omitempty"`
	Method       string  `json:"method,omitempty"`
	Fault        string  `json:"fault,omitempty"`
	AsTaskError  bool    `json:"as_task_error,omitempty"`
	FaultKey     string  `json:"fault_key,omitempty"`
	Variant      string  `json:"variant,omitempty"`
	Code         int     `json:"code,omitempty"`
	Text         string  `json:"text,omitempty"`
	DelayS       float64 `json:"delay_s,omitempty"`
	AfterBytes   int64   `json:"after_bytes,omitempty"`
	AboveBytes   int64   `json:"above_bytes,omitempty"`
	Requests     int     `json:"requests,omitempty"`
}

var faultKinds = map[string]bool{
	"nfc-cut": true, "nfc-delay": true, "nfc-refuse-open": true, "nfc-read-error": true, "nfc-busy": true,
	"nfc-no-sha256": true, "nfc-no-ssl": true, "nfc-36-after-51": true, "nfc-strict-records": true, "nfc-shuffle": true,
	"nfc-newest-first": true, "nfc-odd-fragments": true, "nfc-wrong-certificate": true, "nfc-wrong-sha256": true,
	"nfc-wrong-thumbprint": true, "nfc-bad-fragment": true, "nfc-small-buffers": true, "nfc-no-allocation": true,
	"nfc-refuse-43": true, "nfc-write-error": true,
	"soap-fault": true, "soap-delay": true, "snapshot-stuck": true, "cbt-fault": true, "cbt-gap": true, "cbt-lies": true,
}

var badFragments = map[string]bool{"duplicate": true, "overrun": true, "wrong-opid": true, "bad-magic": true,
	"truncated-zlib": true, "status": true}

func (f *fault) delay() time.Duration { return time.Duration(f.DelayS * float64(time.Second)) }

func (f *fault) matchesCall(method, vm string) bool {
	return (f.Method == "" || f.Method == method) && (f.VM == "" || f.VM == vm)
}

func (f *fault) matchesPath(host, path string) bool {
	return (f.Host == "" || f.Host == host) && strings.Contains(path, f.PathContains)
}

func (f *fault) check() error {
	switch {
	case !faultKinds[f.Kind]:
		return fmt.Errorf("no fault of kind %q", f.Kind)
	case f.Kind == "soap-fault" && namedFault(f.Fault, types.ManagedObjectReference{}, "") == nil:
		return fmt.Errorf("soap-fault: no fault named %q", f.Fault)
	case (f.Kind == "soap-fault" || f.Kind == "soap-delay") && f.Method == "":
		return fmt.Errorf("%s needs a method", f.Kind)
	case f.Kind == "nfc-bad-fragment" && !badFragments[f.Variant]:
		return fmt.Errorf("nfc-bad-fragment: no variant %q", f.Variant)
	}
	return nil
}

type faultTable struct {
	mu   sync.Mutex
	list []*fault
	next int
}

func newFaultTable() *faultTable { return &faultTable{next: 1} }

func (t *faultTable) add(f fault) (fault, error) {
	if err := f.check(); err != nil {
		return f, err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	f.ID, f.Fired = t.next, 0
	t.next++
	t.list = append(t.list, &f)
	return f, nil
}

func (t *faultTable) remove(id int) int {
	t.mu.Lock()
	defer t.mu.Unlock()
	kept := []*fault{}
	for _, f := range t.list {
		if id != 0 && f.ID != id {
			kept = append(kept, f)
		}
	}
	n := len(t.list) - len(kept)
	t.list = kept
	return n
}

func (t *faultTable) all() []fault {
	t.mu.Lock()
	defer t.mu.Unlock()
	out := []fault{}
	for _, f := range t.list {
		out = append(out, *f)
	}
	return out
}

// take finds a fault of a kind that is still due and matches, and counts it as fired.
func (t *faultTable) take(kind string, match func(*fault) bool) *fault {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, f := range t.list {
		if f.Kind != kind || (f.Count > 0 && f.Fired >= f.Count) || !match(f) {
			continue
		}
		if f.Skip > 0 {
			f.Skip--
			continue
		}
		f.Fired++
		c := *f
		return &c
	}
	return nil
}

// due says whether take would find one, without counting it.
func (t *faultTable) due(kind string, match func(*fault) bool) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, f := range t.list {
		if f.Kind == kind && (f.Count == 0 || f.Fired < f.Count) && match(f) {
			return true
		}
	}
	return false
}

// namedFault makes the fault that a test asks for by name; nil when the name is unknown.
func namedFault(name string, ref types.ManagedObjectReference, vm string) types.BaseMethodFault {
	file := "[datastore] " + vm + "/" + vm + ".vmdk"
	switch name {
	case "TaskInProgress":
		return &types.TaskInProgress{Task: types.ManagedObjectReference{Type: "Task", Value: "task-0"}}
	case "FileFault":
		return &types.FileFault{File: file}
	case "FileLocked":
		return &types.FileLocked{FileFault: types.FileFault{File: file}}
	case "FileNotFound":
		return &types.FileNotFound{FileFault: types.FileFault{File: file}}
	case "NoDiskSpace":
		return &types.NoDiskSpace{FileFault: types.FileFault{File: file}, Datastore: "datastore"}
	case "ApplicationQuiesceFault":
		return &types.ApplicationQuiesceFault{}
	case "FilesystemQuiesceFault":
		return &types.FilesystemQuiesceFault{}
	case "ManagedObjectNotFound":
		return notFound(ref)
	case "NotAuthenticated":
		return &types.NotAuthenticated{NoPermission: types.NoPermission{Object: ref, PrivilegeId: "System.View"}}
	case "NoPermission":
		return &types.NoPermission{Object: ref, PrivilegeId: "System.View"}
	case "InvalidState":
		return &types.InvalidState{}
	case "InvalidPowerState":
		return &types.InvalidPowerState{ExistingState: types.VirtualMachinePowerStateSuspended}
	case "SnapshotFault":
		return &types.SnapshotFault{}
	case "SnapshotLocked":
		return &types.SnapshotLocked{}
	case "TooManySnapshotLevels":
		return &types.TooManySnapshotLevels{}
	case "GenericVmConfigFault":
		return &types.GenericVmConfigFault{Reason: "msg.vmsn.failed"}
	case "InsufficientResourcesFault":
		return &types.InsufficientResourcesFault{}
	case "HostNotConnected":
		return &types.HostNotConnected{}
	case "SystemError":
		return &types.SystemError{Reason: "vim.fault.GenericVmConfigFault"}
	case "RuntimeFault":
		return &types.RuntimeFault{}
	case "NotSupported":
		return &types.NotSupported{}
	}
	return nil
}
