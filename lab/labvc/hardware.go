package main

// The virtual hardware of proxy VMs: a process beside this one shows the disks of such a VM to what
// runs "inside" it, as block devices with a sysfs tree. It is told the whole configuration after each
// change and its answer is waited for.

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/types"
)

type shownDisk struct {
	Bus           int32  `json:"bus"`
	Unit          int32  `json:"unit"`
	File          string `json:"file"`
	UUID          string `json:"uuid"`
	CapacityBytes int64  `json:"capacity_bytes"`
	ReadOnly      bool   `json:"read_only"`
}

type shownDevices struct {
	Guest      string      `json:"guest"`
	Identities bool        `json:"identities"` // disk.EnableUUID
	Buses      []int32     `json:"buses"`
	Disks      []shownDisk `json:"disks"`
}

// shownOf is what the guest of a VM with these devices sees. The writes of a nonpersistent disk are thrown
// away at power off on a real host; here such a disk takes none.
func shownOf(vm *simulator.VirtualMachine, guest string, devs []types.BaseVirtualDevice) shownDevices {
	s := shownDevices{Guest: guest, Buses: []int32{}, Disks: []shownDisk{}}
	for _, o := range vm.Config.ExtraConfig {
		v := o.GetOptionValue()
		if strings.EqualFold(v.Key, "disk.EnableUUID") {
			s.Identities = strings.EqualFold(fmt.Sprint(v.Value), "true")
		}
	}
	for _, d := range devs {
		if c, ok := d.(types.BaseVirtualSCSIController); ok {
			s.Buses = append(s.Buses, c.GetVirtualSCSIController().BusNumber)
		}
	}
	for _, d := range disksOf(devs) {
		if d.disk.ControllerKey < 1000 || d.disk.ControllerKey >= 1004 || d.disk.UnitNumber == nil {
			continue
		}
		s.Disks = append(s.Disks, shownDisk{Bus: d.disk.ControllerKey - 1000, Unit: *d.disk.UnitNumber, File: flatPath(vm, d.backing.FileName),
			UUID: d.backing.Uuid, CapacityBytes: d.capacity(), ReadOnly: d.backing.DiskMode == string(types.VirtualDiskModeIndependent_nonpersistent)})
	}
	return s
}

// showDevices lets the guest of a VM see what these devices are; nothing for a VM without a guest or power.
func (l *lab) showDevices(vm *simulator.VirtualMachine, devs []types.BaseVirtualDevice) error {
	l.mu.Lock()
	guest := l.guests[vm.Self.Value]
	l.mu.Unlock()
	if guest == "" || l.site.Hardware == "" {
		return nil
	}
	if !poweredOn(vm) {
		devs = nil
	}
	return l.tellHardware("devices", shownOf(vm, guest, devs))
}

// refreshGuest is showDevices for what the VM has now; a failure is only told.
func (l *lab) refreshGuest(vm *simulator.VirtualMachine) {
	logBad("devices of "+vm.Name, l.showDevices(vm, vm.Config.Hardware.Device))
}

var hardwareClient = http.Client{Timeout: 60 * time.Second, Transport: &http.Transport{Proxy: nil}}

// tellHardware sends an order and waits until it is done.
func (l *lab) tellHardware(order string, body interface{}) error {
	b, err := json.Marshal(body)
	if err != nil {
		return err
	}
	r, err := hardwareClient.Post("http://"+l.site.Hardware+"/"+order, "application/json", bytes.NewReader(b))
	if err != nil {
		return err
	}
	defer r.Body.Close()
	said, _ := io.ReadAll(r.Body)
	if r.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: status %d: %s", order, r.StatusCode, said)
	}
	return nil
}
