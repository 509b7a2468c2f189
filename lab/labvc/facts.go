package main

// What a site file says of VMs and storage that only matters to who chooses how to read a disk.

import (
	"fmt"
	"path"
	"strings"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/types"
)

var (
	storageTypes = map[string]bool{"VMFS": true, "NFS": true, "NFS41": true, "vsan": true, "VVOL": true}
	toolsStates  = map[string]bool{"running": true, "stopped": true, "missing": true}
	busSharings  = map[string]bool{"noSharing": true, "virtualSharing": true, "physicalSharing": true}
	diskSharings = map[string]bool{"sharingNone": true, "sharingMultiWriter": true}
	rdmModes     = map[string]bool{"": true, "physical": true, "virtual": true}
)

func (v *SiteVM) checkFacts() error {
	orElse(&v.Tools, "running")
	orElse(&v.BusSharing, "noSharing")
	if !toolsStates[v.Tools] || !busSharings[v.BusSharing] {
		return fmt.Errorf("VM %s: tools %q or bus_sharing %q is not known", v.Name, v.Tools, v.BusSharing)
	}
	for i := range v.Disks {
		d := &v.Disks[i]
		orElse(&d.Sharing, "sharingNone")
		if !diskSharings[d.Sharing] || !rdmModes[d.RDM] || (d.Eager && d.Thin) {
			return fmt.Errorf("VM %s disk %d: sharing %q, rdm %q, or thin and eager at the same time", v.Name, i, d.Sharing, d.RDM)
		}
	}
	return nil
}

// contains says whether a host is in a list; an empty list has them all when it says so.
func contains(list []string, name string, emptyIsAll bool) bool {
	for _, n := range list {
		if n == name {
			return true
		}
	}
	return emptyIsAll && len(list) == 0
}

// mountOf is how a host mounts a datastore; nil when it does not.
func mountOf(d *SiteDatastore, host, vmfs string) *types.HostMountInfo {
	if !contains(d.Hosts, host, true) {
		return nil
	}
	m := &types.HostMountInfo{Path: "/vmfs/volumes/" + vmfs, AccessMode: string(types.HostMountModeReadWrite),
		Mounted: types.NewBool(true), Accessible: types.NewBool(true)}
	if contains(d.ReadOnlyHosts, host, false) {
		m.AccessMode = string(types.HostMountModeReadOnly)
	}
	return m
}

// otherStorage is the info object of a datastore that is neither VMFS nor NFS.
func otherStorage(d *SiteDatastore, info types.DatastoreInfo, volume types.HostFileSystemVolume) types.BaseDatastoreInfo {
	id := stableUUID("datastore", d.Path)
	if d.Type == "vsan" {
		return &types.VsanDatastoreInfo{DatastoreInfo: info, MembershipUuid: id}
	}
	return &types.VvolDatastoreInfo{DatastoreInfo: info, VvolDS: &types.HostVvolVolume{HostFileSystemVolume: volume, ScId: "vvol:" + strings.ReplaceAll(id, "-", "")}}
}

func keyOf(id string) *types.CryptoKeyId {
	if id == "" {
		return nil
	}
	return &types.CryptoKeyId{KeyId: id, ProviderId: &types.KeyProviderId{Id: "lab-keys"}}
}

func keyName(k *types.CryptoKeyId) string {
	if k == nil {
		return ""
	}
	return k.KeyId
}

// setFacts gives a VM that was just made what the site file says of it as a whole.
func (l *lab) setFacts(vm *simulator.VirtualMachine, v *SiteVM) {
	l.mu.Lock()
	l.tools[vm.Self.Value] = v.Tools
	l.mu.Unlock()
	l.edit(vm, func() []types.PropertyChange {
		vm.Config.KeyId = keyOf(v.KeyID)
		l.setTools(vm)
		return nil
	})
}

// setTools is called within edit, after setGuest.
func (l *lab) setTools(vm *simulator.VirtualMachine) {
	l.mu.Lock()
	state := l.tools[vm.Self.Value]
	l.mu.Unlock()
	if state != "stopped" && state != "missing" {
		return
	}
	g, s := *vm.Guest, *vm.Summary.Guest
	g.ToolsRunningStatus, g.ToolsStatus, g.GuestOperationsReady = "guestToolsNotRunning", types.VirtualMachineToolsStatusToolsNotRunning, types.NewBool(false)
	if state == "missing" {
		g.ToolsStatus, g.ToolsVersionStatus2, g.ToolsVersion = types.VirtualMachineToolsStatusToolsNotInstalled, "guestToolsNotInstalled", "0"
	}
	s.ToolsRunningStatus, s.ToolsStatus, s.ToolsVersionStatus2 = g.ToolsRunningStatus, g.ToolsStatus, g.ToolsVersionStatus2
	vm.Guest, vm.Summary.Guest = &g, &s
}

// addMapping attaches a raw device mapping: vCenter shows it, snapshots leave it as it is, nobody reads it here.
func (l *lab) addMapping(vm *simulator.VirtualMachine, name string, d *SiteDisk, controller int32) error {
	e := &deviceEdit{l: l, vm: vm, devs: ownDisks(vm.Config.Hardware.Device), keys: map[int32]int32{}}
	ds, _ := datastoreOf(vm, name)
	id := stableUUID("rdm", name)
	disk := &types.VirtualDisk{VirtualDevice: types.VirtualDevice{ControllerKey: controller}, CapacityInBytes: d.CapacityBytes}
	b := &types.VirtualDiskRawDiskMappingVer1BackingInfo{DiskMode: d.Mode, Uuid: newDiskUUID(), Sharing: d.Sharing,
		CompatibilityMode: d.RDM + "Mode", LunUuid: "02000000" + strings.ReplaceAll(id, "-", "") + "4c554e", DeviceName: "vml.02000000" + strings.ReplaceAll(id, "-", "")}
	b.FileName, b.Datastore = name, &ds.Self
	if d.RDM == "physical" {
		b.DiskMode = string(types.VirtualDiskModeIndependent_persistent)
	}
	disk.Backing = b
	if !e.place(&disk.VirtualDevice) {
		return fmt.Errorf("no free unit for %s", path.Base(name))
	}
	disk.DeviceInfo = &types.Description{Label: e.freeLabel("Hard disk")}
	setCapacity(disk)
	e.devs = append(e.devs, disk)
	e.linkControllers()
	l.setDevices(vm, e.devs)
	return nil
}

// toldDatastores are those of a VM whose changes the hardware process wants to know of.
func (l *lab) toldDatastores(vm *simulator.VirtualMachine) []string {
	out := []string{}
	dc := l.site.datacenter(datacenterName(vm))
	if dc == nil || l.site.Hardware == "" {
		return out
	}
	for _, ref := range vm.Datastore {
		ds, ok := simulator.Map.Get(ref).(*simulator.Datastore)
		for i := range dc.Datastores {
			if ok && dc.Datastores[i].Name == ds.Name && dc.Datastores[i].Told {
				out = append(out, ds.Name)
			}
		}
	}
	return out
}

type storageOrder struct {
	VM         string        `json:"vm"`
	Datastores []string      `json:"datastores"`
	Disks      []storageDisk `json:"disks"`
}

type storageDisk struct {
	File  string `json:"file"` // of the base
	Thin  bool   `json:"thin"`
	Eager bool   `json:"eager"`
}

func storageDisksOf(vm *simulator.VirtualMachine) []storageDisk {
	out := []storageDisk{}
	for _, d := range disksOf(vm.Config.Hardware.Device) {
		files := chainOf(d.backing)
		out = append(out, storageDisk{File: flatPath(vm, files[len(files)-1]), Thin: isTrue(d.backing.ThinProvisioned), Eager: isTrue(d.backing.EagerlyScrub)})
	}
	return out
}

// changing tells the hardware process that a VM's files are about to change; what it answers is to be called
// when they have. Used with the VM's lock held. Whatever was told of before is told of after, and also the
// datastores that the VM came to use in between.
func (l *lab) changing(vm *simulator.VirtualMachine) func() {
	tell := func(order string, stores []string) {
		if len(stores) > 0 {
			logBad(order, l.tellHardware(order, storageOrder{VM: vm.Self.Value, Datastores: stores, Disks: storageDisksOf(vm)}))
		}
	}
	stores := l.toldDatastores(vm)
	tell("storage-before", stores)
	return func() {
		for _, name := range l.toldDatastores(vm) {
			if !contains(stores, name, false) {
				stores = append(stores, name)
			}
		}
		tell("storage-after", stores)
	}
}
