package main

// VMs as a whole: create, configure, register, power, destroy.

import (
	"fmt"
	"os"
	"path"
	"regexp"
	"strings"
	"time"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/types"
)

var emptyAnnotation = regexp.MustCompile(`<annotation[^>]*(/>|></annotation>)`)

func (l *lab) reconfigVM(q *request) {
	vm := getVM(q.call.This.ref())
	if vm == nil {
		q.fail(notFound(q.call.This.ref()))
		return
	}
	body, err := q.typed()
	if err != nil {
		logBad("ReconfigVM_Task", err)
		q.fail(invalidArgument("spec"))
		return
	}
	r := body.(*types.ReconfigVM_Task)
	clear := emptyAnnotation.Match(q.raw)
	q.answerTask(l.startTask(vm, q.name, q.user, func(progress func(int)) (types.AnyType, types.BaseMethodFault) {
		defer l.lockVM(vm.Self)()
		if getVM(vm.Self) == nil {
			return nil, notFound(vm.Self)
		}
		defer l.changing(vm)()
		return nil, l.reconfigure(vm, r.Spec, clear)
	}))
}

func (l *lab) reconfigure(vm *simulator.VirtualMachine, spec types.VirtualMachineConfigSpec, clearAnnotation bool) types.BaseMethodFault {
	if vm.Config.Template && (len(spec.DeviceChange) > 0 || spec.ChangeTrackingEnabled != nil) {
		return &types.NotSupported{}
	}
	if f := l.applyDevices(vm, spec.DeviceChange); f != nil {
		return f
	}
	extra := spec.ExtraConfig
	spec.DeviceChange, spec.ExtraConfig = nil, nil
	wasOn := cbtOn(vm)
	l.edit(vm, func() []types.PropertyChange { return nil }) // a fresh copy for the simulator to change
	res := &methods.ReconfigVM_TaskBody{}
	if f := l.inSimulator(&methods.ReconfigVM_TaskBody{Req: &types.ReconfigVM_Task{This: vm.Self, Spec: spec}}, res); f != nil {
		return f
	}
	if _, f := taskOutcome(res.Res.Returnval); f != nil {
		return f
	}
	l.edit(vm, func() []types.PropertyChange {
		vm.Config.ExtraConfig = mergeExtra(vm.Config.ExtraConfig, extra)
		if clearAnnotation {
			vm.Config.Annotation = ""
		}
		vm.Summary.Config.Annotation = vm.Config.Annotation
		vm.Config.Modified = time.Now()
		changes := []types.PropertyChange{
			{Name: "config.extraConfig", Val: vm.Config.ExtraConfig}, {Name: "config.annotation", Val: vm.Config.Annotation},
			{Name: "config.modified", Val: vm.Config.Modified}, {Name: "config.changeTrackingEnabled", Val: cbtOn(vm)}}
		if spec.Name != "" {
			changes = append(changes, types.PropertyChange{Name: "name", Val: spec.Name})
		}
		return append(changes, refreshLayout(vm)...)
	})
	l.trackingSwitched(vm, wasOn)
	writeVMX(vm)
	return nil
}

func (l *lab) trackingSwitched(vm *simulator.VirtualMachine, wasOn bool) {
	if wasOn == cbtOn(vm) {
		return
	}
	l.loseTracking(vm, 0)
	l.mu.Lock()
	l.noStar[vm.Self.Value] = vm.Snapshot != nil
	l.mu.Unlock()
	if !cbtOn(vm) {
		devs := ownDisks(vm.Config.Hardware.Device)
		for _, d := range disksOf(devs) {
			d.backing.ChangeId = ""
		}
		l.setDevices(vm, devs)
	}
}

// mergeExtra sets keys, and deletes those whose value is empty.
func mergeExtra(have, changes []types.BaseOptionValue) []types.BaseOptionValue {
	out := append([]types.BaseOptionValue(nil), have...)
	for _, c := range changes {
		n := c.GetOptionValue()
		kept := out[:0:0]
		for _, o := range out {
			if o.GetOptionValue().Key != n.Key {
				kept = append(kept, o)
			}
		}
		out = kept
		if s, ok := n.Value.(string); !ok || s != "" {
			out = append(out, c)
		}
	}
	return out
}

func (l *lab) createVM(q *request) {
	folder, ok := simulator.Map.Get(q.call.This.ref()).(*simulator.Folder)
	if !ok {
		q.fail(notFound(q.call.This.ref()))
		return
	}
	body, err := q.typed()
	if err != nil {
		logBad("CreateVM_Task", err)
		q.fail(invalidArgument("config"))
		return
	}
	r := body.(*types.CreateVM_Task)
	q.answerTask(l.startTask(folder, q.name, q.user, func(progress func(int)) (types.AnyType, types.BaseMethodFault) {
		vm, f := l.newVM(r)
		if f != nil {
			return nil, f
		}
		return vm.Self, nil
	}))
}

// newVM creates a VM in the simulator without devices and adds these by our own rules.
func (l *lab) newVM(r *types.CreateVM_Task) (*simulator.VirtualMachine, types.BaseMethodFault) {
	if r.Config.Name == "" {
		return nil, &types.InvalidVmConfig{Property: "configSpec.name"}
	}
	folder := simulator.Map.Get(r.This).(*simulator.Folder)
	for _, ref := range folder.ChildEntity {
		if e, ok := simulator.Map.Get(ref).(mo.Entity); ok && e.Entity().Name == r.Config.Name {
			return nil, &types.DuplicateName{Name: r.Config.Name, Object: ref}
		}
	}
	config := r.Config
	changes, extra := config.DeviceChange, config.ExtraConfig
	config.DeviceChange, config.ExtraConfig = nil, nil
	host, f := l.pickHost(r)
	if f != nil {
		return nil, f
	}
	vmx, f := vmxPath(host, &config)
	if f != nil {
		return nil, f
	}
	config.Files = &types.VirtualMachineFileInfo{VmPathName: vmx, LogDirectory: path.Dir(vmx), SnapshotDirectory: path.Dir(vmx), SuspendDirectory: path.Dir(vmx)}
	if config.Version == "" {
		config.Version = "vmx-19"
	}
	self := host.Self
	res := &methods.CreateVM_TaskBody{}
	f = l.inSimulator(&methods.CreateVM_TaskBody{Req: &types.CreateVM_Task{This: r.This, Config: config, Pool: r.Pool, Host: &self}}, res)
	if f != nil {
		return nil, f
	}
	made, f := taskOutcome(res.Res.Returnval)
	if f != nil {
		return nil, f
	}
	vm := getVM(made.(types.ManagedObjectReference))
	defer l.lockVM(vm.Self)()
	defer l.changing(vm)()
	l.edit(vm, func() []types.PropertyChange {
		completeConfig(vm, extra)
		if c, ok := simulator.Map.Get(*host.Parent).(*simulator.ClusterComputeResource); ok {
			vm.EnvironmentBrowser = *c.EnvironmentBrowser
		}
		return nil
	})
	if f := l.applyDevices(vm, changes); f != nil {
		l.forget(vm)
		_ = os.RemoveAll(path.Dir(hostPath(vm, vmx)))
		return nil, f
	}
	writeVMX(vm)
	return vm, nil
}

// completeConfig fills in what the simulator leaves out.
func completeConfig(vm *simulator.VirtualMachine, extra []types.BaseOptionValue) {
	vm.Capability.ChangeTrackingSupported = types.NewBool(true)
	vm.Capability.SnapshotOperationsSupported = true
	vm.Capability.MultipleSnapshotsSupported = true
	vm.Capability.QuiescedSnapshotsSupported = true
	vm.Capability.PoweredOffSnapshotsSupported = true
	vm.Capability.RevertToSnapshotSupported = true
	vm.Capability.MemorySnapshotsSupported = true
	vm.Config.ExtraConfig = mergeExtra([]types.BaseOptionValue{
		&types.OptionValue{Key: "nvram", Value: vm.Name + ".nvram"},
		&types.OptionValue{Key: "svga.present", Value: "TRUE"},
		&types.OptionValue{Key: "pciBridge0.present", Value: "TRUE"},
	}, extra)
	vm.Config.GuestFullName = guestName(vm.Config.GuestId)
	vm.Summary.Config.GuestFullName = vm.Config.GuestFullName
	vm.Summary.Config.Annotation = vm.Config.Annotation
	vm.Config.ChangeVersion = time.Now().UTC().Format(time.RFC3339Nano)
	vm.Config.SwapPlacement = "inherit"
	vm.Runtime.ConsolidationNeeded = types.NewBool(false)
	vm.Runtime.FaultToleranceState = types.VirtualMachineFaultToleranceStateNotConfigured
	vm.Runtime.MaxCpuUsage, vm.Runtime.MaxMemoryUsage = 2400*vm.Config.Hardware.NumCPU, vm.Config.Hardware.MemoryMB
	vm.Summary.Runtime = vm.Runtime
	setGuest(vm, poweredOn(vm))
}

var guestNames = map[string]string{
	"debian11_64Guest": "Debian GNU/Linux 11 (64-bit)", "debian10_64Guest": "Debian GNU/Linux 10 (64-bit)",
	"ubuntu64Guest": "Ubuntu Linux (64-bit)", "rhel8_64Guest": "Red Hat Enterprise Linux 8 (64-bit)",
	"rhel7_64Guest": "Red Hat Enterprise Linux 7 (64-bit)", "centos8_64Guest": "CentOS 8 (64-bit)",
	"windows9Server64Guest": "Microsoft Windows Server 2016 or later (64-bit)", "otherGuest64": "Other (64-bit)",
	"windows2019srv_64Guest": "Microsoft Windows Server 2019 (64-bit)", "otherGuest": "Other (32-bit)",
	"otherLinux64Guest": "Other Linux (64-bit)", "other5xLinux64Guest": "Other 5.x or later Linux (64-bit)",
}

func guestName(id string) string {
	if n := guestNames[id]; n != "" {
		return n
	}
	return id
}

func (l *lab) pickHost(r *types.CreateVM_Task) (*simulator.HostSystem, types.BaseMethodFault) {
	if r.Host != nil {
		h, ok := simulator.Map.Get(*r.Host).(*simulator.HostSystem)
		if !ok {
			return nil, notFound(*r.Host)
		}
		return h, nil
	}
	obj, ok := simulator.Map.Get(r.Pool).(mo.Entity)
	for ok && obj != nil {
		if c, is := obj.(*simulator.ClusterComputeResource); is && len(c.Host) > 0 {
			return simulator.Map.Get(c.Host[0]).(*simulator.HostSystem), nil
		}
		if obj.Entity().Parent == nil {
			break
		}
		obj, ok = simulator.Map.Get(*obj.Entity().Parent).(mo.Entity)
	}
	return nil, notFound(r.Pool)
}

// vmxPath picks "[ds] name/name.vmx", or name_1 and so on when that folder is taken.
func vmxPath(host *simulator.HostSystem, config *types.VirtualMachineConfigSpec) (string, types.BaseMethodFault) {
	asked := ""
	if config.Files != nil {
		asked = config.Files.VmPathName
	}
	at := &simulator.VirtualMachine{}
	at.Runtime.Host = &host.Self
	ds, p := datastoreOf(at, asked)
	if ds == nil {
		return "", &types.InvalidDatastorePath{DatastorePath: asked}
	}
	if path.Ext(p.Path) == ".vmx" {
		if exists(hostPath(at, asked)) {
			return "", &types.AlreadyExists{Name: asked}
		}
		return asked, nil
	}
	for n := 0; ; n++ {
		dir := strings.Trim(p.Path, "/")
		if dir == "" {
			dir = config.Name
		}
		if n > 0 {
			dir = fmt.Sprintf("%s_%d", dir, n)
		}
		name := fmt.Sprintf("[%s] %s/%s.vmx", ds.Name, dir, config.Name)
		if !exists(path.Dir(hostPath(at, name))) {
			return name, nil
		}
	}
}

// forget takes a VM out of the inventory.
func (l *lab) forget(vm *simulator.VirtualMachine) {
	logFault("unregister", l.inSimulator(&methods.UnregisterVMBody{Req: &types.UnregisterVM{This: vm.Self}}, &methods.UnregisterVMBody{}))
	l.loseTracking(vm, 0)
}

func logFault(what string, f types.BaseMethodFault) {
	if f != nil {
		logBad(what, fmt.Errorf("%T", f))
	}
}
