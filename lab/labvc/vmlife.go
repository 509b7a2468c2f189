package main

// The life of a VM after it was made: power, register, unregister, destroy.

import (
	"os"
	"path"
	"strings"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/types"
)

// stashedVM is what a real .vmx would bring back at registration.
type stashedVM struct {
	config   types.VirtualMachineConfigInfo
	snapshot *types.VirtualMachineSnapshotInfo
}

func stashKey(vm *simulator.VirtualMachine, vmx string) string { return hostPath(vm, vmx) }

func (l *lab) unregisterVM(q *request) {
	vm := getVM(q.call.This.ref())
	if vm == nil {
		q.fail(notFound(q.call.This.ref()))
		return
	}
	defer l.lockVM(vm.Self)()
	if poweredOn(vm) {
		q.fail(&types.InvalidPowerState{RequestedState: types.VirtualMachinePowerStatePoweredOff, ExistingState: vm.Runtime.PowerState})
		return
	}
	l.mu.Lock()
	l.stash[stashKey(vm, vm.Config.Files.VmPathName)] = &stashedVM{config: *vm.Config}
	l.mu.Unlock()
	l.forget(vm)
	q.answer("")
}

func (l *lab) registerVM(q *request) {
	folder, ok := simulator.Map.Get(q.call.This.ref()).(*simulator.Folder)
	body, err := q.typed()
	if !ok || err != nil {
		q.fail(notFound(q.call.This.ref()))
		return
	}
	r := body.(*types.RegisterVM_Task)
	q.answerTask(l.startTask(folder, q.name, q.user, func(progress func(int)) (types.AnyType, types.BaseMethodFault) {
		res := &methods.RegisterVM_TaskBody{}
		if f := l.inSimulator(&methods.RegisterVM_TaskBody{Req: r}, res); f != nil {
			return nil, f
		}
		made, f := taskOutcome(res.Res.Returnval)
		if f != nil {
			return nil, f
		}
		vm := getVM(made.(types.ManagedObjectReference))
		l.mu.Lock()
		s := l.stash[stashKey(vm, r.Path)]
		delete(l.stash, stashKey(vm, r.Path))
		l.mu.Unlock()
		l.edit(vm, func() []types.PropertyChange {
			if s != nil {
				c := s.config
				c.Name = vm.Name
				vm.Config = &c
				vm.Config.Files.VmPathName = r.Path
			}
			completeConfig(vm, vm.Config.ExtraConfig)
			return append(refreshLayout(vm), setCounts(vm, vm.Config.Hardware.Device)...)
		})
		return vm.Self, nil
	}))
}

func (l *lab) destroy(q *request) {
	vm := getVM(q.call.This.ref())
	if vm == nil {
		l.pass(q) // folders, pools and the like
		return
	}
	q.answerTask(l.startTask(vm, q.name, q.user, func(progress func(int)) (types.AnyType, types.BaseMethodFault) {
		defer l.lockVM(vm.Self)()
		if getVM(vm.Self) == nil {
			return nil, notFound(vm.Self)
		}
		defer l.changing(vm)()
		if poweredOn(vm) {
			return nil, &types.InvalidPowerState{RequestedState: types.VirtualMachinePowerStatePoweredOff, ExistingState: vm.Runtime.PowerState}
		}
		files := filesOf(vm)
		for f := range files.parent {
			if l.lockedBy(vm, f) == "an NFC session" {
				return nil, &types.FileLocked{FileFault: types.FileFault{File: f}}
			}
		}
		own := []string{}
		for f := range files.parent {
			if usedByOther(vm, flatPath(vm, f)) == "" {
				own = append(own, f)
			}
		}
		dir := path.Dir(hostPath(vm, vm.Config.Files.VmPathName))
		snaps := refsIn(treeOf(vm))
		for _, f := range own {
			removeDiskFiles(vm, f)
		}
		for _, ref := range snaps {
			_ = os.Remove(hostPath(vm, snapshotFile(vm, ref)))
		}
		l.forget(vm)
		l.world.Lock()
		for _, ref := range snaps {
			simulator.Map.Remove(ref)
		}
		l.world.Unlock()
		for _, f := range []string{vm.Name + ".vmx", vm.Name + ".nvram", vm.Name + ".vmsd", "vmware.log", path.Base(vm.Config.Files.VmPathName)} {
			_ = os.Remove(path.Join(dir, f))
		}
		_ = os.Remove(dir) // stays when it holds anything else
		l.refreshSpaceOf(vm)
		return nil, nil
	}))
}

func (l *lab) power(q *request) {
	vm := getVM(q.call.This.ref())
	if vm == nil {
		q.fail(notFound(q.call.This.ref()))
		return
	}
	want := types.VirtualMachinePowerStatePoweredOn
	if q.name == "PowerOffVM_Task" {
		want = types.VirtualMachinePowerStatePoweredOff
	}
	q.answerTask(l.startTask(vm, q.name, q.user, func(progress func(int)) (types.AnyType, types.BaseMethodFault) {
		defer l.lockVM(vm.Self)()
		if getVM(vm.Self) == nil {
			return nil, notFound(vm.Self)
		}
		defer l.changing(vm)()
		if vm.Runtime.PowerState == want {
			return nil, &types.InvalidPowerState{RequestedState: want, ExistingState: vm.Runtime.PowerState}
		}
		if f := l.readyToStart(vm); want == types.VirtualMachinePowerStatePoweredOn && f != nil {
			return nil, f
		}
		l.setPower(vm, want)
		return nil, nil
	}))
}

// readyToStart checks what a host checks: the disks are there and nobody else has them.
func (l *lab) readyToStart(vm *simulator.VirtualMachine) types.BaseMethodFault {
	if vm.Config.Template {
		return &types.InvalidState{}
	}
	for _, d := range disksOf(vm.Config.Hardware.Device) {
		f := d.backing.FileName
		if !exists(flatPath(vm, f)) {
			return &types.FileNotFound{FileFault: types.FileFault{File: f}}
		}
		if !independent(d.backing) && l.lockedBy(vm, f) != "" {
			return &types.FileLocked{FileFault: types.FileFault{File: f}}
		}
	}
	return nil
}

func (l *lab) setPower(vm *simulator.VirtualMachine, state types.VirtualMachinePowerState) {
	l.edit(vm, func() []types.PropertyChange {
		vm.Runtime.PowerState = state
		setGuest(vm, poweredOn(vm))
		l.setTools(vm)
		vm.Summary.Runtime = vm.Runtime
		return []types.PropertyChange{{Name: "runtime.powerState", Val: state}, {Name: "summary.runtime.powerState", Val: state},
			{Name: "guest.toolsRunningStatus", Val: vm.Guest.ToolsRunningStatus}}
	})
	l.refreshGuest(vm)
}

// setGuest says what VMware Tools in the guest would say; called within edit.
func setGuest(vm *simulator.VirtualMachine, running bool) {
	g := *vm.Guest
	g.GuestId, g.GuestFullName = vm.Config.GuestId, vm.Config.GuestFullName
	g.GuestFamily = "linuxGuest"
	if strings.HasPrefix(g.GuestId, "win") {
		g.GuestFamily = "windowsGuest"
	}
	g.ToolsVersion, g.ToolsVersionStatus2, g.ToolsVersionStatus = "12352", "guestToolsUnmanaged", "guestToolsUnmanaged"
	g.ToolsInstallType = "guestToolsTypeOpenVMTools"
	if running {
		g.ToolsRunningStatus, g.ToolsStatus, g.GuestState = "guestToolsRunning", types.VirtualMachineToolsStatusToolsOk, "running"
		g.HostName, g.GuestOperationsReady = vm.Name, types.NewBool(true)
	} else {
		g.ToolsRunningStatus, g.ToolsStatus, g.GuestState = "guestToolsNotRunning", types.VirtualMachineToolsStatusToolsNotRunning, "notRunning"
		g.GuestOperationsReady = types.NewBool(false)
	}
	vm.Guest = &g
	vm.Summary.Guest = &types.VirtualMachineGuestSummary{GuestId: g.GuestId, GuestFullName: g.GuestFullName, ToolsStatus: g.ToolsStatus,
		ToolsRunningStatus: g.ToolsRunningStatus, ToolsVersionStatus2: g.ToolsVersionStatus2, HostName: g.HostName}
	vm.Config.Tools = &types.ToolsConfigInfo{ToolsVersion: 12352, ToolsInstallType: g.ToolsInstallType,
		AfterPowerOn: types.NewBool(true), AfterResume: types.NewBool(true), BeforeGuestStandby: types.NewBool(true),
		BeforeGuestShutdown: types.NewBool(true), ToolsUpgradePolicy: "manual"}
}

func (l *lab) shutdownGuest(q *request) {
	vm := getVM(q.call.This.ref())
	if vm == nil {
		q.fail(notFound(q.call.This.ref()))
		return
	}
	defer l.lockVM(vm.Self)()
	if !poweredOn(vm) {
		q.fail(&types.InvalidPowerState{RequestedState: types.VirtualMachinePowerStatePoweredOn, ExistingState: vm.Runtime.PowerState})
		return
	}
	l.setPower(vm, types.VirtualMachinePowerStatePoweredOff)
	q.answer("")
}
