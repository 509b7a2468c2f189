package main

// Privileges: which one a call needs, and the questions about them.

import (
	"github.com/vmware/govmomi/vim25/types"
)

// needs names the privilege of each method that is checked.
var needs = map[string]string{
	"QueryChangedDiskAreas":        "VirtualMachine.Provisioning.DiskRandomRead",
	"CreateSnapshot_Task":          "VirtualMachine.State.CreateSnapshot",
	"CreateSnapshotEx_Task":        "VirtualMachine.State.CreateSnapshot",
	"RemoveSnapshot_Task":          "VirtualMachine.State.RemoveSnapshot",
	"RemoveAllSnapshots_Task":      "VirtualMachine.State.RemoveSnapshot",
	"ConsolidateVMDisks_Task":      "VirtualMachine.State.RemoveSnapshot",
	"RevertToSnapshot_Task":        "VirtualMachine.State.RevertToSnapshot",
	"RevertToCurrentSnapshot_Task": "VirtualMachine.State.RevertToSnapshot",
	"CreateVM_Task":                "VirtualMachine.Inventory.Create",
	"RegisterVM_Task":              "VirtualMachine.Inventory.Register",
	"UnregisterVM":                 "VirtualMachine.Inventory.Unregister",
	"Destroy_Task":                 "VirtualMachine.Inventory.Delete",
	"PowerOnVM_Task":               "VirtualMachine.Interact.PowerOn",
	"PowerOffVM_Task":              "VirtualMachine.Interact.PowerOff",
	"NfcGetVmFiles":                "VirtualMachine.Provisioning.GetVmFiles",
	"NfcRandomAccessOpenReadonly":  "VirtualMachine.Provisioning.DiskRandomRead",
	"NfcRandomAccessOpenDisk":      "VirtualMachine.Provisioning.DiskRandomAccess",
	"NfcGetServerNfcLibVersion":    "System.View",
}

// knownPrivileges is what an account without denials has.
var knownPrivileges = []string{
	"Cryptographer.Access", "Cryptographer.AddDisk", "Cryptographer.RegisterVM", "Datastore.AllocateSpace",
	"Datastore.Browse", "Datastore.Config", "Datastore.FileManagement", "Datastore.UpdateVirtualMachineFiles",
	"Folder.Create", "Global.DisableMethods", "Global.EnableMethods", "Global.Licenses", "Global.LogEvent",
	"Global.ManageCustomFields", "Global.SetCustomField", "Global.Settings", "Host.Config.Storage",
	"InventoryService.Tagging.AttachTag", "InventoryService.Tagging.ObjectAttachable", "Network.Assign",
	"Resource.AssignVMToPool", "Resource.ColdMigrate", "Resource.HotMigrate", "Sessions.ValidateSession",
	"StorageProfile.View", "System.Anonymous", "System.Read", "System.View", "Task.Create", "Task.Update",
	"VApp.AssignVM", "VirtualMachine.Config.AddExistingDisk", "VirtualMachine.Config.AddNewDisk",
	"VirtualMachine.Config.AddRemoveDevice", "VirtualMachine.Config.AdvancedConfig", "VirtualMachine.Config.Annotation",
	"VirtualMachine.Config.CPUCount", "VirtualMachine.Config.ChangeTracking", "VirtualMachine.Config.DiskExtend",
	"VirtualMachine.Config.DiskLease", "VirtualMachine.Config.EditDevice", "VirtualMachine.Config.Memory",
	"VirtualMachine.Config.RawDevice", "VirtualMachine.Config.ReloadFromPath", "VirtualMachine.Config.RemoveDisk",
	"VirtualMachine.Config.Rename", "VirtualMachine.Config.ResetGuestInfo", "VirtualMachine.Config.Resource",
	"VirtualMachine.Config.Settings", "VirtualMachine.Config.SwapPlacement", "VirtualMachine.Config.UpgradeVirtualHardware",
	"VirtualMachine.GuestOperations.Execute", "VirtualMachine.GuestOperations.Modify", "VirtualMachine.GuestOperations.Query",
	"VirtualMachine.Interact.DeviceConnection", "VirtualMachine.Interact.GuestControl", "VirtualMachine.Interact.PowerOff",
	"VirtualMachine.Interact.PowerOn", "VirtualMachine.Interact.Reset", "VirtualMachine.Interact.SetCDMedia",
	"VirtualMachine.Inventory.Create", "VirtualMachine.Inventory.CreateFromExisting", "VirtualMachine.Inventory.Delete",
	"VirtualMachine.Inventory.Move", "VirtualMachine.Inventory.Register", "VirtualMachine.Inventory.Unregister",
	"VirtualMachine.Provisioning.Clone", "VirtualMachine.Provisioning.DiskRandomAccess",
	"VirtualMachine.Provisioning.DiskRandomRead", "VirtualMachine.Provisioning.FileRandomAccess",
	"VirtualMachine.Provisioning.GetVmFiles", "VirtualMachine.Provisioning.MarkAsTemplate",
	"VirtualMachine.Provisioning.MarkAsVM", "VirtualMachine.Provisioning.PutVmFiles",
	"VirtualMachine.State.CreateSnapshot", "VirtualMachine.State.RemoveSnapshot", "VirtualMachine.State.RenameSnapshot",
	"VirtualMachine.State.RevertToSnapshot",
}

// missingPrivilege names the first privilege that the caller lacks for this call.
func (l *lab) missingPrivilege(q *request) string {
	if p := needs[q.name]; p != "" && l.sessions.denied(q.user, p) {
		return p
	}
	if q.name != "ReconfigVM_Task" {
		return ""
	}
	body, err := q.typed()
	if err != nil {
		return ""
	}
	for _, p := range reconfigPrivileges(&body.(*types.ReconfigVM_Task).Spec) {
		if l.sessions.denied(q.user, p) {
			return p
		}
	}
	return ""
}

func reconfigPrivileges(spec *types.VirtualMachineConfigSpec) []string {
	var out []string
	if spec.ChangeTrackingEnabled != nil {
		out = append(out, "VirtualMachine.Config.ChangeTracking")
	}
	if len(spec.ExtraConfig) > 0 {
		out = append(out, "VirtualMachine.Config.AdvancedConfig")
	}
	if spec.Annotation != "" {
		out = append(out, "VirtualMachine.Config.Annotation")
	}
	if spec.Name != "" {
		out = append(out, "VirtualMachine.Config.Rename")
	}
	if spec.BootOptions != nil || spec.Flags != nil {
		out = append(out, "VirtualMachine.Config.Settings")
	}
	for _, c := range spec.DeviceChange {
		d := c.GetVirtualDeviceConfigSpec()
		_, disk := d.Device.(*types.VirtualDisk)
		switch {
		case !disk && d.Operation == types.VirtualDeviceConfigSpecOperationEdit:
			out = append(out, "VirtualMachine.Config.EditDevice")
		case !disk:
			out = append(out, "VirtualMachine.Config.AddRemoveDevice")
		case d.Operation == types.VirtualDeviceConfigSpecOperationRemove:
			out = append(out, "VirtualMachine.Config.RemoveDisk")
		case d.Operation == types.VirtualDeviceConfigSpecOperationEdit:
			out = append(out, "VirtualMachine.Config.DiskExtend")
		case d.FileOperation == "":
			out = append(out, "VirtualMachine.Config.AddExistingDisk")
		default:
			out = append(out, "VirtualMachine.Config.AddNewDisk")
		}
	}
	return out
}

func (l *lab) availability(user string, privileges []string) []types.PrivilegeAvailability {
	out := make([]types.PrivilegeAvailability, 0, len(privileges))
	for _, p := range privileges {
		out = append(out, types.PrivilegeAvailability{PrivId: p, IsGranted: !l.sessions.denied(user, p)})
	}
	return out
}

func (l *lab) entityPrivileges(entities []types.ManagedObjectReference, user string, privileges []string) []types.EntityPrivilege {
	out := []types.EntityPrivilege{}
	for _, e := range entities {
		out = append(out, types.EntityPrivilege{Entity: e, PrivAvailability: l.availability(user, privileges)})
	}
	return out
}

func (l *lab) hasPrivilegeOnEntities(q *request) {
	body, err := q.typed()
	if err != nil {
		q.fail(invalidArgument("entity"))
		return
	}
	b := body.(*types.HasPrivilegeOnEntities)
	user := l.sessions.userOfKey(b.SessionId)
	if user == "" {
		q.fail(invalidArgument("sessionId"))
		return
	}
	q.answerValue(l.entityPrivileges(b.Entity, user, b.PrivId))
}

func (l *lab) hasPrivilegeOnEntity(q *request) {
	body, err := q.typed()
	if err != nil {
		q.fail(invalidArgument("entity"))
		return
	}
	b := body.(*types.HasPrivilegeOnEntity)
	user := l.sessions.userOfKey(b.SessionId)
	if user == "" {
		q.fail(invalidArgument("sessionId"))
		return
	}
	granted := []bool{}
	for _, p := range l.availability(user, b.PrivId) {
		granted = append(granted, p.IsGranted)
	}
	q.answerValue(granted)
}

func (l *lab) hasUserPrivilegeOnEntities(q *request) {
	body, err := q.typed()
	if err != nil {
		q.fail(invalidArgument("entities"))
		return
	}
	b := body.(*types.HasUserPrivilegeOnEntities)
	q.answerValue(l.entityPrivileges(b.Entities, b.UserName, b.PrivId))
}

func (l *lab) fetchUserPrivilegeOnEntities(q *request) {
	body, err := q.typed()
	if err != nil {
		q.fail(invalidArgument("entities"))
		return
	}
	b := body.(*types.FetchUserPrivilegeOnEntities)
	out := []types.UserPrivilegeResult{}
	for _, e := range b.Entities {
		r := types.UserPrivilegeResult{Entity: e}
		for _, p := range knownPrivileges {
			if !l.sessions.denied(b.UserName, p) {
				r.Privileges = append(r.Privileges, p)
			}
		}
		out = append(out, r)
	}
	q.answerValue(out)
}
