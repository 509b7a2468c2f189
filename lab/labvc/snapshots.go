package main

// Snapshots: freeze, remove in any order, revert, consolidate.

import (
	"errors"
	"os"
	"syscall"
	"time"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/types"
)

type snapshotOrder struct {
	name, description string
	memory, quiesce   bool
}

func (l *lab) createSnapshot(q *request) {
	vm := getVM(q.call.This.ref())
	body, err := q.typed()
	if vm == nil || err != nil {
		q.fail(notFound(q.call.This.ref()))
		return
	}
	var o snapshotOrder
	switch b := body.(type) {
	case *types.CreateSnapshot_Task:
		o = snapshotOrder{b.Name, b.Description, b.Memory, b.Quiesce}
	case *types.CreateSnapshotEx_Task:
		o = snapshotOrder{b.Name, b.Description, b.Memory, b.QuiesceSpec != nil}
	}
	q.answerTask(l.startTask(vm, q.name, q.user, func(progress func(int)) (types.AnyType, types.BaseMethodFault) {
		defer l.lockVM(vm.Self)()
		return l.makeSnapshot(vm, o, progress)
	}))
}

// frozenDisk is one disk on its way into a snapshot.
type frozenDisk struct {
	vdisk
	child   string // the datastore path in which the VM goes on
	copied  string // host path of the frozen copy until it takes its name
	content *contentMap
}

func (l *lab) makeSnapshot(vm *simulator.VirtualMachine, o snapshotOrder, progress func(int)) (types.AnyType, types.BaseMethodFault) {
	if getVM(vm.Self) == nil {
		return nil, notFound(vm.Self)
	}
	defer l.changing(vm)()
	if depthOf(treeOf(vm)) >= maxSnapshotLevels {
		return nil, &types.TooManySnapshotLevels{}
	}
	live := ownDisks(vm.Config.Hardware.Device)
	frozen, err := l.freeze(vm, live, progress)
	if err != nil {
		for _, d := range frozen {
			_ = os.Remove(d.copied)
		}
		if errors.Is(err, syscall.ENOSPC) {
			return nil, &types.NoDiskSpace{FileFault: types.FileFault{File: vm.Config.Files.VmPathName}}
		}
		logBad("snapshot", err)
		return nil, fileFault("", vm.Config.Files.VmPathName)
	}
	kept := ownDisks(live)
	for i, d := range disksOf(kept) {
		for _, z := range frozen {
			if z.index != d.index {
				continue
			}
			if err := z.swap(vm); err != nil {
				logBad("snapshot", err)
				return nil, fileFault("", d.backing.FileName)
			}
			files := append([]string{z.child}, chainOf(z.backing)...)
			next := withChain(*z.backing, files)
			d.backing.ChangeId, next.ChangeId = "", ""
			if cbtOn(vm) {
				d.backing.ChangeId, next.ChangeId = l.record(vm, d.disk.Key, z.content)
			}
			disksOf(live)[i].disk.Backing = next
		}
	}
	progress(95)
	ref := l.putSnapshot(vm, o, kept, live)
	for _, d := range disksOf(live) {
		l.relabelParent(vm, d)
	}
	_ = os.WriteFile(hostPath(vm, snapshotFile(vm, ref)), nil, 0o600)
	l.refreshSpaceOf(vm)
	return ref, nil
}

// freeze copies every disk that takes part; nothing has changed for the VM yet.
func (l *lab) freeze(vm *simulator.VirtualMachine, devs []types.BaseVirtualDevice, progress func(int)) ([]frozenDisk, error) {
	var out []frozenDisk
	disks := disksOf(devs)
	for i, d := range disks {
		if independent(d.backing) {
			continue
		}
		z := frozenDisk{vdisk: d, child: childName(vm, d.backing.FileName)}
		z.copied = flatPath(vm, d.backing.FileName) + ".frozen"
		out = append(out, z)
		err := copySparse(z.copied, flatPath(vm, d.backing.FileName), func(share float64) {
			progress(int(90 * (float64(i) + share) / float64(len(disks))))
		})
		if err != nil {
			return out, err
		}
		if cbtOn(vm) {
			if out[len(out)-1].content, err = readContentMap(z.copied); err != nil {
				return out, err
			}
		}
	}
	return out, nil
}

// swap gives the frozen copy the disk's name and the file that the VM writes to the child's name.
func (z *frozenDisk) swap(vm *simulator.VirtualMachine) error {
	name := flatPath(vm, z.backing.FileName)
	if err := os.Rename(name, flatPath(vm, z.child)); err != nil {
		return err
	}
	return os.Rename(z.copied, name)
}

func (l *lab) putSnapshot(vm *simulator.VirtualMachine, o snapshotOrder, kept, live []types.BaseVirtualDevice) types.ManagedObjectReference {
	s := &simulator.VirtualMachineSnapshot{}
	s.Vm = vm.Self
	s.Config = *vm.Config
	s.Config.Hardware.Device = kept
	s.Config.ExtraConfig = append([]types.BaseOptionValue(nil), vm.Config.ExtraConfig...)
	l.world.Lock()
	simulator.Map.Put(s)
	l.world.Unlock()
	node := types.VirtualMachineSnapshotTree{
		Snapshot: s.Self, Vm: vm.Self, Name: o.name, Description: o.description, Id: l.nextSnapshotID(vm),
		CreateTime: time.Now(), State: vm.Runtime.PowerState, Quiesced: o.quiesce, ReplaySupported: types.NewBool(false)}
	if !o.memory {
		node.State = types.VirtualMachinePowerStatePoweredOff
	}
	tree := copyTree(treeOf(vm))
	if vm.Snapshot != nil && vm.Snapshot.CurrentSnapshot != nil {
		p := findNode(tree, *vm.Snapshot.CurrentSnapshot)
		p.ChildSnapshotList = append(p.ChildSnapshotList, node)
	} else {
		tree = append(tree, node)
	}
	ref := s.Self
	l.edit(vm, func() []types.PropertyChange {
		changes := setTree(vm, tree, &ref)
		changes = append(changes, types.PropertyChange{Name: "config.hardware.device", Val: live})
		return append(changes, refreshLayoutOf(vm, live)...)
	})
	return ref
}

// refreshLayoutOf is refreshLayout for devices that are about to be set by the same edit.
func refreshLayoutOf(vm *simulator.VirtualMachine, devs []types.BaseVirtualDevice) []types.PropertyChange {
	vm.Config.Hardware.Device = devs
	return refreshLayout(vm)
}

func (l *lab) nextSnapshotID(vm *simulator.VirtualMachine) int32 {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.snapshotIDs[vm.Self.Value]++
	return l.snapshotIDs[vm.Self.Value]
}

func (l *lab) removeSnapshot(q *request) {
	s := getSnapshot(q.call.This.ref())
	body, err := q.typed()
	if s == nil || err != nil {
		q.fail(notFound(q.call.This.ref()))
		return
	}
	b := body.(*types.RemoveSnapshot_Task)
	q.answerTask(l.startTask(s, q.name, q.user, func(progress func(int)) (types.AnyType, types.BaseMethodFault) {
		vm := getVM(s.Vm)
		if vm == nil {
			return nil, notFound(s.Vm)
		}
		defer l.lockVM(vm.Self)()
		if getSnapshot(s.Self) == nil {
			return nil, notFound(s.Self)
		}
		gone := []types.ManagedObjectReference{s.Self}
		if n := findNode(treeOf(vm), s.Self); b.RemoveChildren && n != nil {
			gone = append(gone, refsIn(n.ChildSnapshotList)...)
		}
		current := currentAfter(vm, s.Self, b.RemoveChildren)
		tree := withoutNode(copyTree(treeOf(vm)), s.Self, b.RemoveChildren)
		progress(30)
		return nil, l.dropSnapshots(vm, gone, tree, current, b.Consolidate == nil || *b.Consolidate)
	}))
}

func (l *lab) removeAllSnapshots(q *request) {
	vm := getVM(q.call.This.ref())
	if vm == nil {
		q.fail(notFound(q.call.This.ref()))
		return
	}
	q.answerTask(l.startTask(vm, q.name, q.user, func(progress func(int)) (types.AnyType, types.BaseMethodFault) {
		defer l.lockVM(vm.Self)()
		progress(30)
		return nil, l.dropSnapshots(vm, refsIn(treeOf(vm)), nil, nil, true)
	}))
}

// dropSnapshots takes snapshots out of the tree and folds the files that nothing pins any more. A
// locked file leaves the disks as they are, with consolidationNeeded, as a real host does.
func (l *lab) dropSnapshots(vm *simulator.VirtualMachine, gone []types.ManagedObjectReference, tree snapTree,
	current *types.ManagedObjectReference, consolidate bool) types.BaseMethodFault {
	defer l.changing(vm)()
	before := filesOf(vm)
	for _, ref := range gone {
		_ = os.Remove(hostPath(vm, snapshotFile(vm, ref)))
	}
	l.edit(vm, func() []types.PropertyChange { return setTree(vm, tree, current) })
	l.world.Lock()
	for _, ref := range gone {
		simulator.Map.Remove(ref)
	}
	l.world.Unlock()
	stuck := l.faults.take("snapshot-stuck", func(f *fault) bool { return f.VM == "" || f.VM == vm.Name }) != nil
	if stuck || !consolidate {
		l.setConsolidationNeeded(vm, true)
		l.edit(vm, func() []types.PropertyChange { return refreshLayout(vm) })
		return nil
	}
	if locked := l.collapse(vm, before); locked != "" {
		l.setConsolidationNeeded(vm, true)
		return &types.FileLocked{FileFault: types.FileFault{File: locked}}
	}
	l.refreshSpaceOf(vm)
	return nil
}

func (l *lab) setConsolidationNeeded(vm *simulator.VirtualMachine, needed bool) {
	l.edit(vm, func() []types.PropertyChange {
		vm.Runtime.ConsolidationNeeded = types.NewBool(needed)
		vm.Summary.Runtime.ConsolidationNeeded = types.NewBool(needed)
		return []types.PropertyChange{{Name: "runtime.consolidationNeeded", Val: needed}, {Name: "summary.runtime.consolidationNeeded", Val: needed}}
	})
}

func (l *lab) consolidateVMDisks(q *request) {
	vm := getVM(q.call.This.ref())
	if vm == nil {
		q.fail(notFound(q.call.This.ref()))
		return
	}
	q.answerTask(l.startTask(vm, q.name, q.user, func(progress func(int)) (types.AnyType, types.BaseMethodFault) {
		defer l.lockVM(vm.Self)()
		defer l.changing(vm)()
		progress(30)
		if locked := l.collapse(vm, filesOf(vm)); locked != "" {
			return nil, &types.FileLocked{FileFault: types.FileFault{File: locked}}
		}
		l.setConsolidationNeeded(vm, false)
		l.refreshSpaceOf(vm)
		return nil, nil
	}))
}

func (l *lab) revertToSnapshot(q *request) {
	s := getSnapshot(q.call.This.ref())
	if s == nil {
		q.fail(notFound(q.call.This.ref()))
		return
	}
	l.startRevert(q, s)
}

func (l *lab) revertToCurrentSnapshot(q *request) {
	vm := getVM(q.call.This.ref())
	if vm == nil {
		q.fail(notFound(q.call.This.ref()))
		return
	}
	if vm.Snapshot == nil || vm.Snapshot.CurrentSnapshot == nil {
		q.fail(&types.NotFound{})
		return
	}
	l.startRevert(q, getSnapshot(*vm.Snapshot.CurrentSnapshot))
}

func (l *lab) startRevert(q *request, s *simulator.VirtualMachineSnapshot) {
	q.answerTask(l.startTask(s, q.name, q.user, func(progress func(int)) (types.AnyType, types.BaseMethodFault) {
		vm := getVM(s.Vm)
		if vm == nil {
			return nil, notFound(s.Vm)
		}
		defer l.lockVM(vm.Self)()
		return nil, l.revert(vm, s, progress)
	}))
}

// revert lets the VM go on from the snapshot's state, in new child files. The files that it wrote
// to are lost and change tracking starts a new epoch.
func (l *lab) revert(vm *simulator.VirtualMachine, s *simulator.VirtualMachineSnapshot, progress func(int)) types.BaseMethodFault {
	defer l.changing(vm)()
	before := filesOf(vm)
	devs := ownDisks(s.Config.Hardware.Device)
	for _, d := range disksOf(devs) {
		if independent(d.backing) {
			continue
		}
		child := childName(vm, d.backing.FileName)
		if err := copySparse(flatPath(vm, child), flatPath(vm, d.backing.FileName), func(share float64) { progress(int(share * 80)) }); err != nil {
			logBad("revert", err)
			return fileFault("", d.backing.FileName)
		}
		next := withChain(*d.backing, append([]string{child}, chainOf(d.backing)...))
		next.ChangeId = ""
		d.disk.Backing = next
	}
	l.loseTracking(vm, 0)
	ref := s.Self
	l.edit(vm, func() []types.PropertyChange {
		c := s.Config
		c.Hardware.Device = devs
		vm.Config = &c
		changes := setTree(vm, copyTree(treeOf(vm)), &ref)
		changes = append(changes, types.PropertyChange{Name: "config.hardware.device", Val: devs})
		return append(changes, refreshLayout(vm)...)
	})
	if n := findNode(treeOf(vm), ref); n != nil && n.State != vm.Runtime.PowerState {
		l.setPower(vm, n.State)
	}
	for _, d := range disksOf(devs) {
		l.relabelParent(vm, d)
	}
	l.refreshGuest(vm)
	now := filesOf(vm)
	for f := range before.live {
		if _, still := now.parent[f]; !still && childRE.MatchString(f) && usedByOther(vm, flatPath(vm, f)) == "" {
			removeDiskFiles(vm, f)
		}
	}
	l.refreshSpaceOf(vm)
	return nil
}
