package main

// Virtual disks in device changes: new files, existing files (a restore or a proxy attaches them),
// growing.

import (
	"fmt"
	"os"
	"path"
	"strings"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/types"
)

func (e *deviceEdit) addDisk(bad *types.InvalidDeviceSpec, d *types.VirtualDisk, op types.VirtualDeviceConfigSpecFileOperation) types.BaseMethodFault {
	b, ok := d.Backing.(*types.VirtualDiskFlatVer2BackingInfo)
	if !ok {
		return &types.InvalidDeviceBacking{InvalidDeviceSpec: *bad}
	}
	if b.DiskMode == "" {
		b.DiskMode = string(types.VirtualDiskModePersistent)
	}
	if !e.place(&d.VirtualDevice) {
		return bad
	}
	if d.ControllerKey < 1000 && poweredOn(e.vm) { // IDE knows no hot-add
		return &types.InvalidPowerState{RequestedState: types.VirtualMachinePowerStatePoweredOff, ExistingState: e.vm.Runtime.PowerState}
	}
	if !diskModes[types.VirtualDiskMode(b.DiskMode)] {
		return &types.InvalidDeviceBacking{InvalidDeviceSpec: *bad}
	}
	for _, p := range []**bool{&b.ThinProvisioned, &b.EagerlyScrub, &b.WriteThrough, &b.Split, &b.DigestEnabled} {
		if *p == nil {
			*p = types.NewBool(false)
		}
	}
	b.ChangeId = ""
	orElse(&b.Sharing, "sharingNone")
	if !diskSharings[b.Sharing] {
		return &types.InvalidDeviceBacking{InvalidDeviceSpec: *bad}
	}
	d.DeviceInfo = &types.Description{Label: e.freeLabel("Hard disk")}
	d.Shares = &types.SharesInfo{Shares: 1000, Level: types.SharesLevelNormal}
	d.DiskObjectId = fmt.Sprintf("%s-%d", strings.TrimPrefix(e.vm.Self.Value, "vm-"), d.Key)
	d.NativeUnmanagedLinkedClone = types.NewBool(false)
	var f types.BaseMethodFault
	switch op {
	case types.VirtualDeviceConfigSpecFileOperationCreate:
		f = e.createDisk(bad, d, b)
	case "":
		f = e.attachDisk(bad, d, b)
	default:
		f = &types.InvalidDeviceOperation{}
	}
	if f != nil {
		return f
	}
	setCapacity(d)
	ds, _ := datastoreOf(e.vm, b.FileName)
	b.Datastore = &ds.Self
	return nil
}

// setCapacity makes the three places in which a disk's size stands agree.
func setCapacity(d *types.VirtualDisk) {
	if d.CapacityInBytes == 0 {
		d.CapacityInBytes = d.CapacityInKB << 10
	}
	d.CapacityInKB = d.CapacityInBytes >> 10
	if d.DeviceInfo != nil {
		d.DeviceInfo.GetDescription().Summary = thousands(d.CapacityInKB) + " KB"
	}
}

func thousands(n int64) string {
	s := fmt.Sprint(n)
	for i := len(s) - 3; i > 0; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}

func (e *deviceEdit) createDisk(bad *types.InvalidDeviceSpec, d *types.VirtualDisk, b *types.VirtualDiskFlatVer2BackingInfo) types.BaseMethodFault {
	size := d.CapacityInBytes
	if size == 0 {
		size = d.CapacityInKB << 10
	}
	if size <= 0 || size%512 != 0 {
		return bad
	}
	if b.FileName != "" {
		if ds, _ := datastoreOf(e.vm, b.FileName); ds == nil {
			return &types.InvalidDatastorePath{InvalidDatastore: types.InvalidDatastore{}, DatastorePath: b.FileName}
		}
	} else if b.Datastore != nil {
		if ds, ok := simulator.Map.Get(*b.Datastore).(*simulator.Datastore); ok {
			b.FileName = "[" + ds.Name + "]"
		}
	}
	if path.Ext(b.FileName) != ".vmdk" {
		b.FileName = e.newDiskName(b.FileName)
	}
	descriptor, flat := hostPath(e.vm, b.FileName), flatPath(e.vm, b.FileName)
	if descriptor == "" {
		return &types.InvalidDatastorePath{DatastorePath: b.FileName}
	}
	if exists(descriptor) || exists(flat) {
		return &types.FileAlreadyExists{FileFault: types.FileFault{File: b.FileName}}
	}
	if f := e.room(b, size); f != nil {
		return f
	}
	b.Parent = nil
	if b.KeyId == nil { // the disks of an encrypted VM are
		b.KeyId = e.vm.Config.KeyId
	}
	if b.Uuid == "" {
		b.Uuid = newDiskUUID()
	}
	err := os.MkdirAll(path.Dir(descriptor), 0o700)
	if err == nil {
		err = createSparse(flat, size)
	}
	if err == nil {
		e.undoFiles(flat, descriptor)
		err = writeDescriptor(descriptor, size, diskMeta{uuid: b.Uuid, thin: isTrue(b.ThinProvisioned), adapter: adapterOf(d.ControllerKey), key: keyName(b.KeyId)})
	}
	if err != nil {
		logBad("new disk", err)
		return &types.CannotCreateFile{FileFault: types.FileFault{File: b.FileName}}
	}
	d.CapacityInBytes = size
	return nil
}

// room refuses a thick disk that is larger than the free space of its datastore.
func (e *deviceEdit) room(b *types.VirtualDiskFlatVer2BackingInfo, size int64) types.BaseMethodFault {
	ds, _ := datastoreOf(e.vm, b.FileName)
	if isTrue(b.ThinProvisioned) || ds.Summary.FreeSpace >= size {
		return nil
	}
	return &types.NoDiskSpace{FileFault: types.FileFault{File: b.FileName}, Datastore: ds.Name}
}

func (e *deviceEdit) attachDisk(bad *types.InvalidDeviceSpec, d *types.VirtualDisk, b *types.VirtualDiskFlatVer2BackingInfo) types.BaseMethodFault {
	flat := flatPath(e.vm, b.FileName)
	if flat == "" { // no such datastore on the VM's host
		return &types.InvalidDatastorePath{DatastorePath: b.FileName}
	}
	if path.Ext(b.FileName) != ".vmdk" {
		return &types.InvalidDeviceBacking{InvalidDeviceSpec: *bad}
	}
	size, _ := sizes(flat)
	meta, err := readDescriptor(hostPath(e.vm, b.FileName))
	if err != nil || size == 0 {
		return &types.FileNotFound{FileFault: types.FileFault{File: b.FileName}}
	}
	for _, own := range disksOf(e.devs) {
		if own.backing.FileName == b.FileName {
			return &types.FileLocked{FileFault: types.FileFault{File: b.FileName}}
		}
	}
	if (meta.adapter == "ide") != (d.ControllerKey < 1000) {
		return &types.InvalidDeviceBacking{InvalidDeviceSpec: *bad}
	}
	if meta.key != "" && e.vm.Config.KeyId == nil { // an encrypted disk wants an encrypted VM
		return &types.InvalidDeviceBacking{InvalidDeviceSpec: *bad}
	}
	if e.lockedFor(flat, types.VirtualDiskMode(b.DiskMode)) {
		return &types.FileLocked{FileFault: types.FileFault{File: b.FileName}}
	}
	files := []string{b.FileName}
	for p := meta.parent; p != ""; {
		name := path.Dir(files[len(files)-1]) + "/" + p
		m, err := readDescriptor(hostPath(e.vm, name))
		if err != nil {
			return &types.FileNotFound{FileFault: types.FileFault{File: name}}
		}
		files, p = append(files, name), m.parent
	}
	if b.Uuid == "" {
		b.Uuid = meta.uuid
	}
	b.ThinProvisioned, b.KeyId = types.NewBool(meta.thin), keyOf(meta.key)
	d.Backing = withChain(*b, files)
	d.CapacityInBytes = size
	return nil
}

var diskModes = map[types.VirtualDiskMode]bool{types.VirtualDiskModePersistent: true,
	types.VirtualDiskModeIndependent_persistent: true, types.VirtualDiskModeIndependent_nonpersistent: true}

// lockedFor says whether somebody holds the file in a way that excludes this use of it: a running VM that
// writes to it excludes everybody, one that only reads it (as parent, or nonpersistent) every writer.
func (e *deviceEdit) lockedFor(flat string, mode types.VirtualDiskMode) bool {
	reads := mode == types.VirtualDiskModeIndependent_nonpersistent
	if e.l.nfcOpen(flat) && !reads {
		return true
	}
	for _, o := range allVMs() {
		if o.Self == e.vm.Self || o.Runtime.Host == nil {
			continue
		}
		for f := range filesOf(o).parent {
			if flatPath(o, f) != flat {
				continue
			}
			writes := writesTo(o, f)
			if poweredOn(o) && (writes || !reads) {
				return true
			}
			// A disk of a VM that is off may be attached elsewhere for a while, but not into the other's snapshots.
			if writes && mode == types.VirtualDiskModePersistent {
				return true
			}
		}
	}
	return false
}

// writesTo says whether a VM's own configuration writes to the file.
func writesTo(vm *simulator.VirtualMachine, file string) bool {
	for _, d := range disksOf(vm.Config.Hardware.Device) {
		if d.backing.FileName == file {
			return d.backing.DiskMode != string(types.VirtualDiskModeIndependent_nonpersistent)
		}
	}
	return false
}

func (e *deviceEdit) editDisk(i int32, at int, d *types.VirtualDisk) types.BaseMethodFault {
	old := e.devs[at].(*types.VirtualDisk)
	ob, ok := old.Backing.(*types.VirtualDiskFlatVer2BackingInfo)
	b, ok2 := d.Backing.(*types.VirtualDiskFlatVer2BackingInfo)
	if !ok || !ok2 {
		return &types.InvalidDeviceBacking{InvalidDeviceSpec: types.InvalidDeviceSpec{DeviceIndex: i}}
	}
	was := vdisk{disk: old}.capacity()
	// A client that raises only capacityInKB sends the old capacityInBytes along.
	size := d.CapacityInBytes
	if size == 0 || (size == was && d.CapacityInKB<<10 > was) {
		size = d.CapacityInKB << 10
	}
	if size < was || (size > was && ob.Parent != nil) {
		return &types.InvalidDeviceOperation{InvalidDeviceSpec: types.InvalidDeviceSpec{DeviceIndex: i}}
	}
	n := withChain(*ob, chainOf(ob))
	if b.DiskMode != "" {
		n.DiskMode = b.DiskMode
	}
	c := *old
	c.Backing, c.CapacityInBytes, c.ControllerKey, c.UnitNumber = n, size, d.ControllerKey, d.UnitNumber
	setCapacity(&c)
	if size > was {
		n.ChangeId = ""
		e.resized = append(e.resized, c.Key)
		e.commit = append(e.commit, func() error {
			if err := os.Truncate(flatPath(e.vm, n.FileName), size); err != nil {
				return err
			}
			return writeDescriptor(hostPath(e.vm, n.FileName), size, diskMeta{uuid: n.Uuid, thin: isTrue(n.ThinProvisioned), adapter: adapterOf(old.ControllerKey), key: keyName(n.KeyId)})
		})
	}
	e.devs[at] = &c
	return nil
}
