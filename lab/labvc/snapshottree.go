package main

// The tree of a VM's snapshots, changed by copying.

import (
	"fmt"
	"path"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/types"
)

const maxSnapshotLevels = 32

type snapTree = []types.VirtualMachineSnapshotTree

func copyTree(t snapTree) snapTree {
	if t == nil {
		return nil
	}
	out := append(snapTree{}, t...)
	for i := range out {
		out[i].ChildSnapshotList = copyTree(out[i].ChildSnapshotList)
	}
	return out
}

func findNode(t snapTree, ref types.ManagedObjectReference) *types.VirtualMachineSnapshotTree {
	for i := range t {
		if t[i].Snapshot == ref {
			return &t[i]
		}
		if n := findNode(t[i].ChildSnapshotList, ref); n != nil {
			return n
		}
	}
	return nil
}

// parentNode answers the snapshot above ref, or nil.
func parentNode(t snapTree, ref types.ManagedObjectReference) *types.ManagedObjectReference {
	for i := range t {
		for _, c := range t[i].ChildSnapshotList {
			if c.Snapshot == ref {
				p := t[i].Snapshot
				return &p
			}
		}
		if p := parentNode(t[i].ChildSnapshotList, ref); p != nil {
			return p
		}
	}
	return nil
}

func withoutNode(t snapTree, ref types.ManagedObjectReference, children bool) snapTree {
	var out snapTree
	for _, n := range t {
		switch {
		case n.Snapshot != ref:
			n.ChildSnapshotList = withoutNode(n.ChildSnapshotList, ref, children)
			out = append(out, n)
		case !children:
			out = append(out, n.ChildSnapshotList...)
		}
	}
	return out
}

func refsIn(t snapTree) []types.ManagedObjectReference {
	var out []types.ManagedObjectReference
	for _, n := range t {
		out = append(append(out, n.Snapshot), refsIn(n.ChildSnapshotList)...)
	}
	return out
}

func depthOf(t snapTree) int {
	deepest := 0
	for _, n := range t {
		if d := 1 + depthOf(n.ChildSnapshotList); d > deepest {
			deepest = d
		}
	}
	return deepest
}

func treeOf(vm *simulator.VirtualMachine) snapTree {
	if vm.Snapshot == nil {
		return nil
	}
	return vm.Snapshot.RootSnapshotList
}

func snapshotsOf(vm *simulator.VirtualMachine) []*simulator.VirtualMachineSnapshot {
	var out []*simulator.VirtualMachineSnapshot
	for _, ref := range refsIn(treeOf(vm)) {
		if s := getSnapshot(ref); s != nil {
			out = append(out, s)
		}
	}
	return out
}

// snapshotFile is the file that holds a snapshot's state.
func snapshotFile(vm *simulator.VirtualMachine, ref types.ManagedObjectReference) string {
	id := int32(0)
	if n := findNode(treeOf(vm), ref); n != nil {
		id = n.Id
	}
	return fmt.Sprintf("%s/%s-Snapshot%d.vmsn", path.Dir(vm.Config.Files.VmPathName), vm.Name, id)
}

// setTree is called within edit.
func setTree(vm *simulator.VirtualMachine, tree snapTree, current *types.ManagedObjectReference) []types.PropertyChange {
	vm.RootSnapshot = nil
	for _, n := range tree {
		vm.RootSnapshot = append(vm.RootSnapshot, n.Snapshot)
	}
	for _, ref := range refsIn(tree) {
		if s := getSnapshot(ref); s != nil {
			s.ChildSnapshot = nil
			for _, c := range findNode(tree, ref).ChildSnapshotList {
				s.ChildSnapshot = append(s.ChildSnapshot, c.Snapshot)
			}
		}
	}
	if len(tree) == 0 {
		vm.Snapshot = nil
		return []types.PropertyChange{{Name: "snapshot", Val: nil}}
	}
	vm.Snapshot = &types.VirtualMachineSnapshotInfo{CurrentSnapshot: current, RootSnapshotList: tree}
	changes := []types.PropertyChange{{Name: "snapshot.rootSnapshotList", Val: tree}}
	if current != nil {
		changes = append(changes, types.PropertyChange{Name: "snapshot.currentSnapshot", Val: *current})
	}
	return changes
}

// currentAfter is the current snapshot once ref (and what lies below it) is gone.
func currentAfter(vm *simulator.VirtualMachine, ref types.ManagedObjectReference, children bool) *types.ManagedObjectReference {
	cur := vm.Snapshot.CurrentSnapshot
	if cur == nil {
		return nil
	}
	gone := *cur == ref
	if n := findNode(treeOf(vm), ref); children && n != nil {
		for _, r := range refsIn(n.ChildSnapshotList) {
			gone = gone || r == *cur
		}
	}
	if !gone {
		return cur
	}
	return parentNode(treeOf(vm), ref)
}
