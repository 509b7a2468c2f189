package main

// The laboratory's own state beside the simulator's objects, and how both are changed.

import (
	"context"
	"log"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"
)

type lab struct {
	site  *Site
	model *simulator.Model
	next  http.Handler // the simulator's own server

	// world is held for writing while simulator objects change, and for reading while a request
	// is answered from them (the answer is encoded after the simulator's own locks are gone).
	world sync.RWMutex

	mu          sync.Mutex // the fields below
	vmLocks     map[string]*sync.Mutex
	tracks      map[string]*track     // "vm-1/2000"
	noStar      map[string]bool       // VMs on which tracking was switched on while snapshots existed
	stash       map[string]*stashedVM // "datacenter moref/[ds] path.vmx" -> configuration of an unregistered VM
	nextMAC     int
	snapshotIDs map[string]int32 // by VM
	open        map[string]int   // host path of a flat file -> open NFC handles
	tickets     map[string]*ticket
	sessions    *sessionTable
	faults      *faultTable
	stats       *statTable
	latencies   *latencyTable
	hosts       map[string]*esxHost // by moref
	tools       map[string]string   // VM moref -> state of VMware Tools, as the site file has it
	guests      map[string]string   // VM moref -> its name at the hardware process
}

func newLab(site *Site) *lab {
	return &lab{
		site:        site,
		vmLocks:     map[string]*sync.Mutex{},
		snapshotIDs: map[string]int32{},
		tracks:      map[string]*track{},
		noStar:      map[string]bool{},
		stash:       map[string]*stashedVM{},
		open:        map[string]int{},
		tickets:     map[string]*ticket{},
		sessions:    newSessionTable(site),
		faults:      newFaultTable(),
		stats:       newStatTable(),
		latencies:   &latencyTable{},
		hosts:       map[string]*esxHost{},
		guests:      map[string]string{},
		tools:       map[string]string{},
	}
}

// lockVM lets one operation at a time change a VM and its files.
func (l *lab) lockVM(ref types.ManagedObjectReference) func() {
	l.mu.Lock()
	m := l.vmLocks[ref.Value]
	if m == nil {
		m = &sync.Mutex{}
		l.vmLocks[ref.Value] = m
	}
	l.mu.Unlock()
	m.Lock()
	return m.Unlock
}

// edit changes a simulator object and tells waiting property collectors.
func (l *lab) edit(obj mo.Reference, f func() []types.PropertyChange) {
	l.world.Lock()
	defer l.world.Unlock()
	simulator.Map.WithLock(obj, func() {
		if vm, ok := obj.(*simulator.VirtualMachine); ok && vm.Config != nil {
			c := *vm.Config // whoever still encodes the old one keeps it whole
			vm.Config = &c
		}
		if changes := f(); len(changes) > 0 {
			simulator.Map.Update(obj, changes)
		}
	})
}

// inSimulator runs one of the simulator's own methods in this process.
func (l *lab) inSimulator(req, res soap.HasFault) types.BaseMethodFault {
	l.world.Lock()
	defer l.world.Unlock()
	return l.inSimulatorLocked(req, res)
}

func (l *lab) inSimulatorLocked(req, res soap.HasFault) types.BaseMethodFault {
	err := l.model.Service.RoundTrip(context.Background(), req, res)
	if err == nil {
		return nil
	}
	if soap.IsSoapFault(err) {
		if f, ok := soap.ToSoapFault(err).VimFault().(types.BaseMethodFault); ok {
			return f
		}
	}
	return &types.SystemError{RuntimeFault: types.RuntimeFault{}, Reason: err.Error()}
}

// taskOutcome reads a task that the simulator ran (it runs them before it answers).
func taskOutcome(ref types.ManagedObjectReference) (types.AnyType, types.BaseMethodFault) {
	t := simulator.Map.Get(ref).(*simulator.Task)
	if t.Info.Error != nil {
		return nil, t.Info.Error.Fault
	}
	return t.Info.Result, nil
}

type taskBody func(progress func(percent int)) (types.AnyType, types.BaseMethodFault)

// startTask makes a task in the inventory and runs its body in the background.
func (l *lab) startTask(entity mo.Reference, name, user string, body taskBody) types.ManagedObjectReference {
	l.world.Lock()
	t := simulator.CreateTask(entity, name, nil)
	t.Info.Name = name
	t.Info.DescriptionId = entity.Reference().Type + "." + lowerFirst(strings.TrimSuffix(name, "_Task"))
	t.Info.Reason = &types.TaskReasonUser{UserName: user}
	t.Info.Cancelable = false
	if e, ok := entity.(mo.Entity); ok {
		t.Info.EntityName = e.Entity().Name
		simulator.Map.WithLock(entity, func() { noteRecent(e.Entity(), t.Self) })
	}
	if s, ok := entity.(*simulator.VirtualMachineSnapshot); ok {
		vm := s.Vm
		t.Info.Entity = &vm // a task's entity is a managed entity, which a snapshot is not
	}
	l.world.Unlock()
	go l.runTask(t, body)
	return t.Self
}

// noteRecent keeps the last tasks of an entity where clients look for running ones.
func noteRecent(e *mo.ManagedEntity, task types.ManagedObjectReference) {
	recent := append([]types.ManagedObjectReference(nil), e.RecentTask...)
	if len(recent) >= 10 {
		recent = recent[1:]
	}
	e.RecentTask = append(recent, task)
}

func lowerFirst(s string) string { return strings.ToLower(s[:1]) + s[1:] }

func (l *lab) runTask(t *simulator.Task, body taskBody) {
	last := 0
	l.edit(t, func() []types.PropertyChange {
		return []types.PropertyChange{{Name: "info.startTime", Val: time.Now()}, {Name: "info.state", Val: types.TaskInfoStateRunning}}
	})
	result, fault := body(func(percent int) {
		if percent <= last {
			return
		}
		last = percent
		l.edit(t, func() []types.PropertyChange {
			return []types.PropertyChange{{Name: "info.progress", Val: int32(percent)}}
		})
	})
	l.edit(t, func() []types.PropertyChange {
		c := []types.PropertyChange{{Name: "info.completeTime", Val: time.Now()}}
		if fault != nil {
			log.Printf("%s %s: %T", t.Info.Name, t.Info.EntityName, fault)
			return append(c, types.PropertyChange{Name: "info.error", Val: types.LocalizedMethodFault{Fault: fault, LocalizedMessage: faultText(fault)}},
				types.PropertyChange{Name: "info.state", Val: types.TaskInfoStateError})
		}
		if result != nil {
			c = append(c, types.PropertyChange{Name: "info.result", Val: result})
		}
		return append(c, types.PropertyChange{Name: "info.state", Val: types.TaskInfoStateSuccess})
	})
}

func getVM(ref types.ManagedObjectReference) *simulator.VirtualMachine {
	vm, _ := simulator.Map.Get(ref).(*simulator.VirtualMachine)
	return vm
}

func getSnapshot(ref types.ManagedObjectReference) *simulator.VirtualMachineSnapshot {
	s, _ := simulator.Map.Get(ref).(*simulator.VirtualMachineSnapshot)
	return s
}

func allVMs() []*simulator.VirtualMachine {
	var out []*simulator.VirtualMachine
	for _, e := range simulator.Map.All("VirtualMachine") {
		if vm, ok := e.(*simulator.VirtualMachine); ok {
			out = append(out, vm)
		}
	}
	return out
}

func poweredOn(vm *simulator.VirtualMachine) bool {
	return vm.Runtime.PowerState == types.VirtualMachinePowerStatePoweredOn
}
