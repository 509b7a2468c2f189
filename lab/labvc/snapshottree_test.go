package main

import (
	"reflect"
	"testing"

	"github.com/vmware/govmomi/vim25/types"
)

func node(name string, children ...types.VirtualMachineSnapshotTree) types.VirtualMachineSnapshotTree {
	return types.VirtualMachineSnapshotTree{Snapshot: types.ManagedObjectReference{Type: "VirtualMachineSnapshot", Value: name}, ChildSnapshotList: children}
}

func names(t snapTree) []string {
	var out []string
	for _, r := range refsIn(t) {
		out = append(out, r.Value)
	}
	return out
}

func TestTreeIsChangedByCopy(t *testing.T) {
	tree := snapTree{node("a", node("b", node("c")), node("d"))}
	b := tree[0].ChildSnapshotList[0].Snapshot
	kept := withoutNode(copyTree(tree), b, false)
	if got := names(kept); !reflect.DeepEqual(got, []string{"a", "c", "d"}) {
		t.Errorf("%v", got)
	}
	if got := names(withoutNode(copyTree(tree), b, true)); !reflect.DeepEqual(got, []string{"a", "d"}) {
		t.Errorf("with children: %v", got)
	}
	if got := names(tree); !reflect.DeepEqual(got, []string{"a", "b", "c", "d"}) {
		t.Errorf("the old tree became %v", got)
	}
	if p := parentNode(tree, b); p == nil || p.Value != "a" {
		t.Errorf("parent %v", p)
	}
	if depthOf(tree) != 3 {
		t.Errorf("depth %d", depthOf(tree))
	}
}

func TestFoldJoinsChainsOfEveryKind(t *testing.T) {
	u := &fileUse{parent: map[string]string{"base": "", "1": "base", "2": "1", "3": "1"}, pinned: map[string]bool{"2": true, "3": true}}
	if c, n := onlyChild(u, "base"); c != "1" || n != 1 {
		t.Fatalf("%s %d", c, n)
	}
	u.fold("base", "1")
	if !reflect.DeepEqual(u.parent, map[string]string{"base": "", "2": "base", "3": "base"}) || u.pinned["base"] {
		t.Errorf("%v %v", u.parent, u.pinned)
	}
	if _, n := onlyChild(u, "base"); n != 2 {
		t.Errorf("a branch has %d children", n)
	}
}

func TestExtraConfigSetsReplacesAndDeletes(t *testing.T) {
	o := func(k, v string) types.BaseOptionValue { return &types.OptionValue{Key: k, Value: v} }
	got := mergeExtra([]types.BaseOptionValue{o("a", "1"), o("b", "2")}, []types.BaseOptionValue{o("a", "3"), o("b", ""), o("c", "4")})
	if !reflect.DeepEqual(got, []types.BaseOptionValue{o("a", "3"), o("c", "4")}) {
		t.Errorf("%v", got)
	}
}
