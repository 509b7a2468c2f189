package main

// What a host can give to a VM, as far as clients ask before they add devices.

import (
	"strconv"
	"strings"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/types"
)

const defaultHardware = "vmx-19"

func hardwareNumber(version string) int {
	n, err := strconv.Atoi(strings.TrimPrefix(version, "vmx-"))
	if err != nil {
		return 0
	}
	return n
}

// scsiUnits is how many units a SCSI controller has, the reserved one included.
func scsiUnits(c types.BaseVirtualDevice, version string) int32 {
	if _, ok := c.(*types.ParaVirtualSCSIController); ok && hardwareNumber(version) >= 14 {
		return 65
	}
	return 16
}

func (l *lab) queryConfigOption(q *request) {
	body, err := q.typed()
	if _, ok := simulator.Map.Get(q.call.This.ref()).(*simulator.EnvironmentBrowser); !ok || err != nil {
		q.fail(notFound(q.call.This.ref()))
		return
	}
	version := body.(*types.QueryConfigOption).Key
	orElse(&version, defaultHardware)
	if n := hardwareNumber(version); n < 4 || n > hardwareNumber(defaultHardware) {
		q.fail(invalidArgument("key"))
		return
	}
	q.answerValue(configOption(version))
}

func upTo(max int32) types.IntOption { return types.IntOption{Min: 0, Max: max} }

func scsiOption(kind string, disks int32) types.VirtualSCSIControllerOption {
	o := types.VirtualSCSIControllerOption{NumSCSIDisks: upTo(disks), NumSCSICdroms: upTo(disks), NumSCSIPassthrough: upTo(disks),
		Sharing: []types.VirtualSCSISharing{types.VirtualSCSISharingNoSharing}, HotAddRemove: types.BoolOption{Supported: true, DefaultValue: true}, ScsiCtlrUnitNumber: 7}
	o.Devices = upTo(disks)
	o.Type = kind
	o.SupportedDevice = []string{"VirtualDisk", "VirtualCdrom", "VirtualSCSIPassthrough"}
	o.HotRemoveSupported, o.PlugAndPlay = types.NewBool(true), true
	return o
}

func configOption(version string) types.VirtualMachineConfigOption {
	paravirtual := scsiUnits(&types.ParaVirtualSCSIController{}, version) - 1
	nvme := types.VirtualNVMEControllerOption{NumNVMEDisks: upTo(15)}
	nvme.Devices = upTo(15)
	nvme.Type = "VirtualNVMEController"
	sata := types.VirtualAHCIControllerOption{VirtualSATAControllerOption: types.VirtualSATAControllerOption{NumSATADisks: upTo(30), NumSATACdroms: upTo(30)}}
	sata.Devices = upTo(30)
	sata.Type = "VirtualAHCIController"
	ide := types.VirtualIDEControllerOption{NumIDEDisks: upTo(2), NumIDECdroms: upTo(2)}
	ide.Devices = upTo(2)
	ide.Type = "VirtualIDEController"
	hw := types.VirtualHardwareOption{HwVersion: int32(hardwareNumber(version)), NumCPU: []int32{1, 2, 4, 8}, MemoryMB: types.LongOption{Min: 4, Max: 6 << 20, DefaultValue: 1024},
		NumPCIControllers: types.IntOption{Min: 1, Max: 1, DefaultValue: 1}, NumIDEControllers: types.IntOption{Min: 2, Max: 2, DefaultValue: 2},
		NumUSBControllers: upTo(1), NumSIOControllers: upTo(1), NumPS2Controllers: upTo(1)}
	hw.VirtualDeviceOption = []types.BaseVirtualDeviceOption{
		&types.ParaVirtualSCSIControllerOption{VirtualSCSIControllerOption: scsiOption("ParaVirtualSCSIController", paravirtual)},
		&types.VirtualLsiLogicControllerOption{VirtualSCSIControllerOption: scsiOption("VirtualLsiLogicController", 15)},
		&types.VirtualLsiLogicSASControllerOption{VirtualSCSIControllerOption: scsiOption("VirtualLsiLogicSASController", 15)},
		&types.VirtualBusLogicControllerOption{VirtualSCSIControllerOption: scsiOption("VirtualBusLogicController", 15)},
		&sata, &nvme, &ide,
	}
	return types.VirtualMachineConfigOption{Version: version, Description: version, HardwareOptions: hw,
		GuestOSDescriptor: []types.GuestOsDescriptor{}, SupportedMonitorType: []string{"release"}}
}
