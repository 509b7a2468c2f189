package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/vmware/govmomi/vim25/types"
)

func TestDescriptorsComeBackAsTheyWereWritten(t *testing.T) {
	for name, m := range map[string]diskMeta{
		"base":      {uuid: "6000c290-0102-0304-0506-0708090a0b0c", thin: true, adapter: "lsilogic"},
		"ide":       {uuid: "6000c291-0102-0304-0506-0708090a0b0c", adapter: "ide"},
		"child":     {uuid: "6000c292-0102-0304-0506-0708090a0b0c", parent: "base.vmdk", adapter: "lsilogic"},
		"encrypted": {uuid: "6000c293-0102-0304-0506-0708090a0b0c", key: "key-1", adapter: "lsilogic"},
	} {
		file := filepath.Join(t.TempDir(), "x.vmdk")
		if err := writeDescriptor(file, 1<<20, m); err != nil {
			t.Fatal(err)
		}
		back, err := readDescriptor(file)
		want := m
		if m.adapter != "ide" {
			want.adapter = "" // what is not ide is not told apart
		}
		if err != nil || back != want {
			t.Errorf("%s: %+v, %v; want %+v", name, back, err, want)
		}
		b, _ := os.ReadFile(file)
		extent := `RW 2048 VMFS "x-flat.vmdk"`
		if m.parent != "" {
			extent = `RW 2048 SESPARSE "x-sesparse.vmdk"`
		}
		if !strings.Contains(string(b), extent) {
			t.Errorf("%s has no line %s", name, extent)
		}
	}
}

func TestMountsDifferByHost(t *testing.T) {
	all, some := &SiteDatastore{}, &SiteDatastore{Hosts: []string{"esx1", "esx2"}, ReadOnlyHosts: []string{"esx2"}}
	if mountOf(all, "esx9", "u") == nil || mountOf(some, "esx9", "u") != nil {
		t.Error("who mounts")
	}
	if mountOf(some, "esx1", "u").AccessMode != "readWrite" || mountOf(some, "esx2", "u").AccessMode != "readOnly" {
		t.Error("how they mount")
	}
}

func TestUnitsOfControllersByHardware(t *testing.T) {
	pv, lsi := &types.ParaVirtualSCSIController{}, &types.VirtualLsiLogicController{}
	for _, c := range []struct {
		device  types.BaseVirtualDevice
		version string
		units   int32
	}{{pv, "vmx-19", 65}, {pv, "vmx-14", 65}, {pv, "vmx-13", 16}, {lsi, "vmx-19", 16}} {
		if n := scsiUnits(c.device, c.version); n != c.units {
			t.Errorf("%T %s: %d units, not %d", c.device, c.version, n, c.units)
		}
		found := false
		for _, o := range configOption(c.version).HardwareOptions.VirtualDeviceOption {
			var s *types.VirtualSCSIControllerOption
			switch x := o.(type) {
			case *types.ParaVirtualSCSIControllerOption:
				s = &x.VirtualSCSIControllerOption
			case *types.VirtualLsiLogicControllerOption:
				s = &x.VirtualSCSIControllerOption
			}
			if s != nil && strings.HasSuffix(s.Type, nameOf(c.device)) {
				found = s.NumSCSIDisks.Max == c.units-1
			}
		}
		if !found {
			t.Errorf("%T %s: the config option says something else", c.device, c.version)
		}
	}
}

func nameOf(d types.BaseVirtualDevice) string {
	if _, ok := d.(*types.ParaVirtualSCSIController); ok {
		return "ParaVirtualSCSIController"
	}
	return "VirtualLsiLogicController"
}

func TestFactsThatContradictAreRefused(t *testing.T) {
	for _, v := range []SiteVM{
		{Name: "a", Tools: "broken"},
		{Name: "b", BusSharing: "some"},
		{Name: "c", Disks: []SiteDisk{{Thin: true, Eager: true}}},
		{Name: "d", Disks: []SiteDisk{{Sharing: "all"}}},
		{Name: "e", Disks: []SiteDisk{{RDM: "logical"}}},
	} {
		if v.checkFacts() == nil {
			t.Errorf("%s was taken", v.Name)
		}
	}
	if err := (&SiteVM{Disks: []SiteDisk{{Eager: true}}}).checkFacts(); err != nil {
		t.Error(err)
	}
}
