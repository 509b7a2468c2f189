package main

// Tasks that the simulator makes itself bear names and entities that stock clients cannot read.

import (
	"strings"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/types"
)

type taskNames struct{}

var realNames = map[string]string{
	"ReconfigVm_Task": "ReconfigVM_Task", "CreateVm_Task": "CreateVM_Task", "RegisterVm_Task": "RegisterVM_Task",
	"CloneVm_Task": "CloneVM_Task", "RelocateVm_Task": "RelocateVM_Task", "PowerOn_Task": "PowerOnVM_Task",
	"PowerOff_Task": "PowerOffVM_Task", "Suspend_Task": "SuspendVM_Task", "Reset_Task": "ResetVM_Task",
}

func (taskNames) Reference() types.ManagedObjectReference {
	return types.ManagedObjectReference{Type: "LabTaskNames", Value: "task-names"}
}

func (taskNames) PutObject(o mo.Reference) {
	t, ok := o.(*simulator.Task)
	if !ok {
		return
	}
	if !strings.HasSuffix(t.Info.Name, "_Task") {
		t.Info.Name += "_Task"
	}
	if n := realNames[t.Info.Name]; n != "" {
		t.Info.Name = n
	}
	switch t.Info.Entity.Type {
	case "VirtualDiskManager", "FileManager", "HostDatastoreBrowser":
		t.Info.Entity = &types.ManagedObjectReference{Type: "Folder", Value: "group-d1"}
	}
}

func (taskNames) UpdateObject(mo.Reference, []types.PropertyChange) {}
func (taskNames) RemoveObject(types.ManagedObjectReference)         {}
