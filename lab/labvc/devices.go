package main

// Device changes of a VM: all or nothing, with the keys and labels that ESXi gives.

import (
	"fmt"
	"os"
	"path"
	"reflect"
	"strings"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/types"
)

// deviceEdit applies device changes to a copy of a VM's devices.
type deviceEdit struct {
	l       *lab
	vm      *simulator.VirtualMachine
	devs    []types.BaseVirtualDevice
	keys    map[int32]int32 // a negative key of the request -> the key given
	undo    []func()        // files made so far
	commit  []func() error  // what cannot be undone waits until everything else went well
	resized []int32
	removed []int32
	nets    bool
}

// applyDevices answers the fault of the first change that cannot be made; nothing has changed then.
func (l *lab) applyDevices(vm *simulator.VirtualMachine, changes []types.BaseVirtualDeviceConfigSpec) types.BaseMethodFault {
	e := &deviceEdit{l: l, vm: vm, devs: ownDisks(vm.Config.Hardware.Device), keys: map[int32]int32{}}
	for i, c := range changes {
		if f := e.apply(int32(i), c.GetVirtualDeviceConfigSpec()); f != nil {
			for _, u := range e.undo {
				u()
			}
			return f
		}
	}
	if err := l.showDevices(vm, e.devs); err != nil {
		logBad("devices of "+vm.Name, err)
		for _, u := range e.undo {
			u()
		}
		return &types.GenericVmConfigFault{Reason: "msg.hotplug.disk.failed"}
	}
	for _, c := range e.commit {
		if err := c(); err != nil {
			logBad("device change", err)
			return fileFault("", vm.Config.Files.VmPathName)
		}
	}
	for _, k := range append(e.resized, e.removed...) {
		l.loseTracking(vm, k)
	}
	e.linkControllers()
	l.edit(vm, func() []types.PropertyChange {
		out := []types.PropertyChange{{Name: "config.hardware.device", Val: e.devs}}
		out = append(out, refreshLayoutOf(vm, e.devs)...)
		return append(out, setCounts(vm, e.devs)...)
	})
	l.refreshSpaceOf(vm)
	return nil
}

func setCounts(vm *simulator.VirtualMachine, devs []types.BaseVirtualDevice) []types.PropertyChange {
	var nets []types.ManagedObjectReference
	nics := int32(0)
	vm.Guest.Net = nil
	for _, d := range devs {
		nic, ok := d.(types.BaseVirtualEthernetCard)
		if !ok {
			continue
		}
		nics++
		c := nic.GetVirtualEthernetCard()
		name := ""
		if b, ok := c.Backing.(*types.VirtualEthernetCardNetworkBackingInfo); ok && b.Network != nil {
			nets, name = append(nets, *b.Network), b.DeviceName
		}
		vm.Guest.Net = append(vm.Guest.Net, types.GuestNicInfo{Network: name, MacAddress: c.MacAddress, Connected: poweredOn(vm), DeviceConfigId: c.Key})
	}
	return []types.PropertyChange{
		{Name: "summary.config.numEthernetCards", Val: nics},
		{Name: "summary.config.numVirtualDisks", Val: int32(len(disksOf(devs)))},
		{Name: "network", Val: nets},
	}
}

func (e *deviceEdit) apply(i int32, c *types.VirtualDeviceConfigSpec) types.BaseMethodFault {
	if c.Device == nil {
		return &types.InvalidDeviceSpec{DeviceIndex: i}
	}
	switch c.Operation {
	case types.VirtualDeviceConfigSpecOperationAdd:
		return e.add(i, c)
	case types.VirtualDeviceConfigSpecOperationEdit:
		return e.edit(i, c)
	case types.VirtualDeviceConfigSpecOperationRemove:
		return e.remove(i, c)
	}
	return &types.InvalidDeviceOperation{}
}

func (e *deviceEdit) find(key int32) int {
	for i, d := range e.devs {
		if d.GetVirtualDevice().Key == key {
			return i
		}
	}
	return -1
}

func (e *deviceEdit) add(i int32, c *types.VirtualDeviceConfigSpec) types.BaseMethodFault {
	d := c.Device.GetVirtualDevice()
	asked := d.Key
	if k, ok := e.keys[d.ControllerKey]; ok {
		d.ControllerKey = k
	}
	bad := &types.InvalidDeviceSpec{InvalidVmConfig: types.InvalidVmConfig{Property: "deviceChange[" + fmt.Sprint(i) + "].device"}, DeviceIndex: i}
	switch dev := c.Device.(type) {
	case *types.VirtualDisk:
		if f := e.addDisk(bad, dev, c.FileOperation); f != nil {
			return f
		}
	case types.BaseVirtualController:
		done, f := e.addController(bad, c.Device, dev)
		if f != nil {
			return f
		}
		if done { // one of the controllers that every VM has
			e.keys[asked] = d.Key
			return nil
		}
	case types.BaseVirtualEthernetCard:
		if f := e.addNIC(bad, dev.GetVirtualEthernetCard()); f != nil {
			return f
		}
	default:
		e.addOther(c.Device)
	}
	if asked != d.Key {
		e.keys[asked] = d.Key
	}
	e.devs = append(e.devs, c.Device)
	return nil
}

type controllerKind struct {
	base  int32
	count int32
	label string
}

func kindOf(d types.BaseVirtualDevice) (controllerKind, bool) {
	switch d.(type) {
	case types.BaseVirtualSCSIController:
		return controllerKind{1000, 4, "SCSI controller"}, true
	case types.BaseVirtualSATAController:
		return controllerKind{15000, 4, "SATA controller"}, true
	case *types.VirtualNVMEController:
		return controllerKind{31000, 4, "NVME controller"}, true
	case *types.VirtualUSBController:
		return controllerKind{7000, 1, "USB controller"}, true
	case *types.VirtualUSBXHCIController:
		return controllerKind{14000, 1, "USB xHCI controller"}, true
	}
	return controllerKind{}, false
}

func (e *deviceEdit) addController(bad *types.InvalidDeviceSpec, dev types.BaseVirtualDevice, c types.BaseVirtualController) (bool, types.BaseMethodFault) {
	v := c.GetVirtualController()
	kind, ok := kindOf(dev)
	if !ok { // IDE, PS2, PCI, SIO: part of every VM
		for _, d := range e.devs {
			if reflect.TypeOf(d) == reflect.TypeOf(dev) && d.(types.BaseVirtualController).GetVirtualController().BusNumber == v.BusNumber {
				v.Key = d.GetVirtualDevice().Key
				return true, nil
			}
		}
		return false, bad
	}
	if v.BusNumber < 0 || v.BusNumber >= kind.count || e.find(kind.base+v.BusNumber) >= 0 {
		return false, bad
	}
	v.Key, v.ControllerKey, v.Device = kind.base+v.BusNumber, 100, nil
	v.DeviceInfo = &types.Description{Label: fmt.Sprintf("%s %d", kind.label, v.BusNumber), Summary: reflect.TypeOf(dev).Elem().Name()}
	if s, ok := dev.(types.BaseVirtualSCSIController); ok {
		s.GetVirtualSCSIController().ScsiCtlrUnitNumber = 7
	}
	return false, nil
}

// units answers how many units a controller has, which one is reserved, and the first disk key.
func (e *deviceEdit) units(c types.BaseVirtualDevice) (count, reserved, firstKey int32) {
	key := c.GetVirtualDevice().Key
	switch c.(type) {
	case types.BaseVirtualSCSIController:
		return scsiUnits(c, e.vm.Config.Version), 7, 2000 + 16*(key-1000)
	case types.BaseVirtualSATAController:
		return 30, -1, 16000 + 30*(key-15000)
	case *types.VirtualNVMEController:
		return 15, -1, 32000 + 15*(key-31000)
	case *types.VirtualIDEController:
		return 2, -1, 3000 + 2*(key-200)
	}
	return 0, -1, 0
}

// diskAddress is like scsi0:1, as the .vmx has it.
func diskAddress(devs []types.BaseVirtualDevice, d *types.VirtualDisk) string {
	unit := int32(0)
	if d.UnitNumber != nil {
		unit = *d.UnitNumber
	}
	name, base := "scsi", int32(1000)
	switch {
	case d.ControllerKey >= 31000:
		name, base = "nvme", 31000
	case d.ControllerKey >= 15000:
		name, base = "sata", 15000
	case d.ControllerKey < 1000:
		name, base = "ide", 200
	}
	return fmt.Sprintf("%s%d:%d", name, d.ControllerKey-base, unit)
}

func (e *deviceEdit) unitTaken(controller, unit int32) bool {
	for _, d := range e.devs {
		v := d.GetVirtualDevice()
		if v.ControllerKey == controller && v.UnitNumber != nil && *v.UnitNumber == unit {
			return true
		}
	}
	return false
}

// place gives a disk its unit and key on its controller.
func (e *deviceEdit) place(d *types.VirtualDevice) bool {
	at := e.find(d.ControllerKey)
	if at < 0 {
		return false
	}
	count, reserved, first := e.units(e.devs[at])
	if d.UnitNumber == nil {
		for u := int32(0); u < count; u++ {
			if u != reserved && !e.unitTaken(d.ControllerKey, u) {
				d.UnitNumber = types.NewInt32(u)
				break
			}
		}
	}
	if d.UnitNumber == nil || *d.UnitNumber < 0 || *d.UnitNumber >= count || *d.UnitNumber == reserved || e.unitTaken(d.ControllerKey, *d.UnitNumber) {
		return false
	}
	d.Key = first + *d.UnitNumber
	if *d.UnitNumber >= 16 && first < 16000 { // beyond what the scheme has room for; real keys there are not known
		d.Key = 131072 + 64*(d.ControllerKey-1000) + *d.UnitNumber
	}
	return true
}

func (e *deviceEdit) freeLabel(prefix string) string {
	for n := 1; ; n++ {
		label, taken := fmt.Sprintf("%s %d", prefix, n), false
		for _, d := range e.devs {
			if i := d.GetVirtualDevice().DeviceInfo; i != nil && i.GetDescription().Label == label {
				taken = true
			}
		}
		if !taken {
			return label
		}
	}
}

func (e *deviceEdit) addNIC(bad *types.InvalidDeviceSpec, c *types.VirtualEthernetCard) types.BaseMethodFault {
	b, ok := c.Backing.(*types.VirtualEthernetCardNetworkBackingInfo)
	if !ok {
		return &types.InvalidDeviceBacking{InvalidDeviceSpec: *bad}
	}
	net := e.l.findNetwork(e.vm, b.DeviceName)
	if net == nil {
		return &types.InvalidDeviceBacking{InvalidDeviceSpec: *bad}
	}
	b.Network = net
	n := int32(0)
	for e.find(4000+n) >= 0 {
		n++
	}
	c.Key, c.ControllerKey, c.UnitNumber = 4000+n, 100, types.NewInt32(7+n)
	c.DeviceInfo = &types.Description{Label: e.freeLabel("Network adapter"), Summary: b.DeviceName}
	if c.MacAddress == "" {
		c.MacAddress, c.AddressType = e.l.newMAC(), "assigned"
	}
	if c.Connectable == nil {
		c.Connectable = &types.VirtualDeviceConnectInfo{StartConnected: true, AllowGuestControl: true}
	}
	c.Connectable.Connected = poweredOn(e.vm) && c.Connectable.StartConnected
	c.WakeOnLanEnabled = types.NewBool(true)
	return nil
}

func (l *lab) newMAC() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.nextMAC++
	return fmt.Sprintf("00:50:56:%02x:%02x:%02x", 0x80|(l.nextMAC>>16)&0x3f, l.nextMAC>>8&0xff, l.nextMAC&0xff)
}

func (e *deviceEdit) addOther(dev types.BaseVirtualDevice) {
	d := dev.GetVirtualDevice()
	first, label := int32(13000), strings.TrimPrefix(reflect.TypeOf(dev).Elem().Name(), "Virtual")
	if _, cd := dev.(*types.VirtualCdrom); cd {
		first, label = 3000, "CD/DVD drive"
	}
	if d.Key > 0 && e.find(d.Key) >= 0 && reflect.TypeOf(e.devs[e.find(d.Key)]) == reflect.TypeOf(dev) {
		e.devs = append(e.devs[:e.find(d.Key)], e.devs[e.find(d.Key)+1:]...) // keyboard, video card and the like
		return
	}
	for d.Key = first; e.find(d.Key) >= 0; d.Key++ {
	}
	if at := e.find(d.ControllerKey); at >= 0 && d.UnitNumber == nil {
		if n, _, _ := e.units(e.devs[at]); n > 0 {
			for u := int32(0); u < n && d.UnitNumber == nil; u++ {
				if !e.unitTaken(d.ControllerKey, u) {
					d.UnitNumber = types.NewInt32(u)
				}
			}
		}
	}
	d.DeviceInfo = &types.Description{Label: e.freeLabel(label), Summary: label}
}

func (e *deviceEdit) edit(i int32, c *types.VirtualDeviceConfigSpec) types.BaseMethodFault {
	d := c.Device.GetVirtualDevice()
	at := e.find(d.Key)
	if at < 0 || reflect.TypeOf(e.devs[at]) != reflect.TypeOf(c.Device) {
		return &types.InvalidDeviceSpec{DeviceIndex: i}
	}
	old := e.devs[at].GetVirtualDevice()
	d.DeviceInfo = old.DeviceInfo
	if d.ControllerKey == 0 {
		d.ControllerKey = old.ControllerKey
	}
	if d.UnitNumber == nil {
		d.UnitNumber = old.UnitNumber
	}
	switch dev := c.Device.(type) {
	case *types.VirtualDisk:
		return e.editDisk(i, at, dev)
	case types.BaseVirtualEthernetCard:
		n := dev.GetVirtualEthernetCard()
		if b, ok := n.Backing.(*types.VirtualEthernetCardNetworkBackingInfo); ok {
			if b.Network = e.l.findNetwork(e.vm, b.DeviceName); b.Network == nil {
				return &types.InvalidDeviceBacking{InvalidDeviceSpec: types.InvalidDeviceSpec{DeviceIndex: i}}
			}
		}
		if n.MacAddress == "" {
			n.MacAddress = e.devs[at].(types.BaseVirtualEthernetCard).GetVirtualEthernetCard().MacAddress
		}
	}
	e.devs[at] = c.Device
	return nil
}

func (e *deviceEdit) remove(i int32, c *types.VirtualDeviceConfigSpec) types.BaseMethodFault {
	at := e.find(c.Device.GetVirtualDevice().Key)
	if at < 0 {
		return &types.InvalidDeviceSpec{DeviceIndex: i}
	}
	if d, ok := e.devs[at].(*types.VirtualDisk); ok {
		if d.ControllerKey < 1000 && poweredOn(e.vm) {
			return &types.InvalidPowerState{RequestedState: types.VirtualMachinePowerStatePoweredOff, ExistingState: e.vm.Runtime.PowerState}
		}
		e.removed = append(e.removed, d.Key)
		if b, ok := d.Backing.(*types.VirtualDiskFlatVer2BackingInfo); ok && c.FileOperation == types.VirtualDeviceConfigSpecFileOperationDestroy {
			// Also what another VM needs goes, as on a host that does not know of the other: whoever asks for
			// this by mistake must see what it does.
			files := chainOf(b)
			for _, f := range files {
				if e.l.nfcOpen(flatPath(e.vm, f)) {
					return &types.FileLocked{FileFault: types.FileFault{File: f}}
				}
			}
			e.commit = append(e.commit, func() error { e.deleteUnpinned(files); return nil })
		}
	}
	if _, ok := e.devs[at].(types.BaseVirtualController); ok {
		for _, d := range e.devs {
			if d.GetVirtualDevice().ControllerKey == e.devs[at].GetVirtualDevice().Key {
				return &types.InvalidDeviceOperation{InvalidDeviceSpec: types.InvalidDeviceSpec{DeviceIndex: i}}
			}
		}
	}
	e.devs = append(e.devs[:at:at], e.devs[at+1:]...)
	return nil
}

// deleteUnpinned deletes files that no snapshot needs.
func (e *deviceEdit) deleteUnpinned(files []string) {
	kept := map[string]bool{}
	for _, s := range snapshotsOf(e.vm) {
		for _, d := range disksOf(s.Config.Hardware.Device) {
			for _, f := range chainOf(d.backing) {
				kept[f] = true
			}
		}
	}
	for _, f := range files {
		if !kept[f] {
			removeDiskFiles(e.vm, f)
		}
	}
}

// linkControllers gives every controller the list of the devices on it.
func (e *deviceEdit) linkControllers() {
	for i, d := range e.devs {
		if _, ok := d.(types.BaseVirtualController); !ok {
			continue
		}
		c := reflect.New(reflect.TypeOf(d).Elem())
		c.Elem().Set(reflect.ValueOf(d).Elem())
		n := c.Interface().(types.BaseVirtualDevice)
		v := n.(types.BaseVirtualController).GetVirtualController()
		v.Device = nil
		for _, o := range e.devs {
			if o.GetVirtualDevice().ControllerKey == v.Key {
				v.Device = append(v.Device, o.GetVirtualDevice().Key)
			}
		}
		e.devs[i] = n
	}
}

func (e *deviceEdit) undoFiles(files ...string) {
	e.undo = append(e.undo, func() {
		for _, f := range files {
			_ = os.Remove(f)
		}
	})
}

// newDiskName picks a free name for a disk's files: vm.vmdk, vm_1.vmdk and so on.
func (e *deviceEdit) newDiskName(asked string) string {
	dir := path.Dir(e.vm.Config.Files.VmPathName)
	if ds, p := datastoreOf(e.vm, asked); ds != nil {
		folder := strings.TrimSuffix(p.Path, "/")
		if folder == "" {
			_, own := datastoreOf(e.vm, e.vm.Config.Files.VmPathName)
			folder = path.Dir(own.Path)
		}
		dir = "[" + ds.Name + "] " + folder
	}
	for n := 0; ; n++ {
		name := fmt.Sprintf("%s/%s.vmdk", dir, e.vm.Name)
		if n > 0 {
			name = fmt.Sprintf("%s/%s_%d.vmdk", dir, e.vm.Name, n)
		}
		if !exists(hostPath(e.vm, name)) && !exists(flatPath(e.vm, name)) {
			return name
		}
	}
}
