package main

// Building the inventory of the site inside the simulator.

import (
	"context"
	"fmt"
	"hash/fnv"
	"os"
	"path"
	"path/filepath"
	"strings"

	"github.com/google/uuid"
	"github.com/vmware/govmomi/object"
	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/types"
)

type builder struct {
	l      *lab
	ctx    context.Context
	client *vim25.Client
	err    error
}

// buildInventory fills an empty vCenter with the site.
func (l *lab) buildInventory() error {
	client, err := vim25.NewClient(context.Background(), l.model.Service)
	if err != nil {
		return err
	}
	b := &builder{l: l, ctx: context.Background(), client: client}
	for i := range l.site.Datacenters {
		if err := b.datacenter(&l.site.Datacenters[i]); err != nil {
			return fmt.Errorf("datacenter %s: %w", l.site.Datacenters[i].Name, err)
		}
	}
	for i := range l.site.VMs {
		if err := b.vm(&l.site.VMs[i]); err != nil {
			return fmt.Errorf("VM %s: %w", l.site.VMs[i].Name, err)
		}
	}
	for _, e := range simulator.Map.All("Datastore") {
		l.refreshSpace(e.(*simulator.Datastore))
	}
	return nil
}

func (b *builder) datacenter(d *SiteDatacenter) error {
	ref, err := object.NewRootFolder(b.client).CreateDatacenter(b.ctx, d.Name)
	if err != nil {
		return err
	}
	dc := simulator.Map.Get(ref.Reference()).(*simulator.Datacenter)
	for _, f := range d.Folders {
		if _, err := b.folder(dc, f); err != nil {
			return err
		}
	}
	hostFolder := object.NewFolder(b.client, dc.HostFolder)
	var hosts []*simulator.HostSystem
	for _, c := range d.Clusters {
		made, err := b.cluster(hostFolder, &c)
		if err != nil {
			return fmt.Errorf("cluster %s: %w", c.Name, err)
		}
		hosts = append(hosts, made...)
	}
	if err := b.networks(dc, d, hosts); err != nil {
		return err
	}
	for i := range d.Datastores {
		if err := b.datastore(dc, &d.Datastores[i], hosts); err != nil {
			return err
		}
	}
	return nil
}

// folder finds or makes a VM folder like "Prod/Web".
func (b *builder) folder(dc *simulator.Datacenter, name string) (types.ManagedObjectReference, error) {
	at := dc.VmFolder
	for _, part := range strings.Split(name, "/") {
		if part == "" {
			continue
		}
		f := simulator.Map.Get(at).(*simulator.Folder)
		if e := simulator.Map.FindByName(part, f.ChildEntity); e != nil {
			at = e.Reference()
			continue
		}
		n, err := object.NewFolder(b.client, at).CreateFolder(b.ctx, part)
		if err != nil {
			return at, err
		}
		at = n.Reference()
	}
	return at, nil
}

func (b *builder) cluster(folder *object.Folder, c *SiteCluster) ([]*simulator.HostSystem, error) {
	cluster, err := folder.CreateCluster(b.ctx, c.Name, types.ClusterConfigSpecEx{})
	if err != nil {
		return nil, err
	}
	var out []*simulator.HostSystem
	for _, name := range c.Hosts {
		task, err := cluster.AddHost(b.ctx, types.HostConnectSpec{HostName: name}, true, nil, nil)
		if err != nil {
			return nil, err
		}
		info, err := task.WaitForResult(b.ctx, nil)
		if err != nil {
			return nil, err
		}
		h := simulator.Map.Get(info.Result.(types.ManagedObjectReference)).(*simulator.HostSystem)
		out = append(out, h)
		esx, err := b.l.newHost(name, h.Self.Value)
		if err != nil {
			return nil, err
		}
		b.l.hosts[h.Self.Value] = esx
		h.Summary.Config.SslThumbprint, h.Summary.Config.Port = esx.thumbprint, 443
		h.Summary.Config.Product = &types.AboutInfo{Name: "VMware ESXi", FullName: "VMware ESXi 8.0.3 build-24022510", Vendor: "VMware, Inc.",
			Version: "8.0.3", Build: "24022510", OsType: "vmnix-x86", ProductLineId: "embeddedEsx", ApiType: "HostAgent", ApiVersion: "8.0.3.0"}
		h.Config.Product = *h.Summary.Config.Product
		h.Config.Certificate = esx.cert.Certificate[0]
	}
	root, err := cluster.ResourcePool(b.ctx)
	if err != nil {
		return nil, err
	}
	for _, p := range c.Pools {
		if _, err := root.Create(b.ctx, p, types.DefaultResourceConfigSpec()); err != nil {
			return nil, err
		}
	}
	return out, nil
}

func (b *builder) networks(dc *simulator.Datacenter, d *SiteDatacenter, hosts []*simulator.HostSystem) error {
	folder := simulator.Map.Get(dc.NetworkFolder).(*simulator.Folder)
	var refs []types.ManagedObjectReference
	for _, name := range append([]string{"VM Network"}, d.Networks...) {
		if e := simulator.Map.FindByName(name, folder.ChildEntity); e != nil {
			if simulator.FindReference(refs, e.Reference()) == nil {
				refs = append(refs, e.Reference())
			}
			continue
		}
		n := &mo.Network{}
		n.Name = name
		n.Entity().Name = name
		simulator.Map.PutEntity(folder, n)
		n.Summary = &types.NetworkSummary{Network: &n.Self, Name: name, Accessible: true}
		folder.ChildEntity = append(folder.ChildEntity, n.Self)
		dc.Network = append(dc.Network, n.Self)
		refs = append(refs, n.Self)
	}
	for _, h := range hosts {
		h.Network = refs
		if c, ok := simulator.Map.Get(*h.Parent).(*simulator.ClusterComputeResource); ok {
			c.Network = refs
		}
	}
	return nil
}

func stableUUID(kind, name string) string {
	return uuid.NewSHA1(uuid.NameSpaceOID, []byte(kind+"/"+name)).String()
}

func (b *builder) datastore(dc *simulator.Datacenter, d *SiteDatastore, hosts []*simulator.HostSystem) error {
	if err := os.MkdirAll(d.Path, 0o700); err != nil {
		return err
	}
	ds := &simulator.Datastore{}
	ds.Name = d.Name
	id := stableUUID("datastore", d.Path)
	vmfs := id[:8] + "-" + strings.ReplaceAll(id[9:18], "-", "") + "-" + id[19:23] + "-" + id[24:]
	if d.VmfsUUID != "" {
		vmfs = d.VmfsUUID
	}
	ds.Info = datastoreInfo(d, vmfs)
	ds.Summary = types.DatastoreSummary{Name: d.Name, Url: d.Path, Capacity: d.CapacityBytes, FreeSpace: d.CapacityBytes, Accessible: true,
		MultipleHostAccess: types.NewBool(len(hosts) > 1), Type: d.Type, MaintenanceMode: "normal"}
	ds.Capability = types.DatastoreCapability{DirectoryHierarchySupported: true, RawDiskMappingsSupported: d.Type == "VMFS",
		PerFileThinProvisioningSupported: true, StorageIORMSupported: types.NewBool(true), NativeSnapshotSupported: types.NewBool(false),
		TopLevelDirectoryCreateSupported: types.NewBool(true), SeSparseSupported: types.NewBool(true)}
	folder := simulator.Map.Get(dc.DatastoreFolder).(*simulator.Folder)
	simulator.Map.PutEntity(folder, ds)
	ds.Summary.Datastore = &ds.Self
	browser := &simulator.HostDatastoreBrowser{}
	browser.Datastore = []types.ManagedObjectReference{ds.Self}
	ds.Browser = simulator.Map.Put(browser).Reference()
	folder.ChildEntity = append(folder.ChildEntity, ds.Self)
	dc.Datastore = append(dc.Datastore, ds.Self)
	for _, h := range hosts {
		mount := mountOf(d, h.Name, vmfs)
		if mount == nil {
			continue
		}
		ds.Host = append(ds.Host, types.DatastoreHostMount{Key: h.Self, MountInfo: *mount})
		h.Datastore = append(h.Datastore, ds.Self)
		if s, ok := simulator.Map.Get(*h.ConfigManager.DatastoreSystem).(*simulator.HostDatastoreSystem); ok {
			s.Datastore = append(s.Datastore, ds.Self)
		}
		if c, ok := simulator.Map.Get(*h.Parent).(*simulator.ClusterComputeResource); ok && simulator.FindReference(c.Datastore, ds.Self) == nil {
			c.Datastore = append(c.Datastore, ds.Self)
		}
	}
	return nil
}

func datastoreInfo(d *SiteDatastore, vmfs string) types.BaseDatastoreInfo {
	info := types.DatastoreInfo{Name: d.Name, Url: d.Path, FreeSpace: d.CapacityBytes, MaxFileSize: 64 << 40, MaxMemoryFileSize: 64 << 40}
	volume := types.HostFileSystemVolume{Type: d.Type, Name: d.Name, Capacity: d.CapacityBytes}
	if isNFS(d.Type) {
		return &types.NasDatastoreInfo{DatastoreInfo: info, Nas: nasVolume(d, volume)}
	}
	if d.Type != "VMFS" {
		return otherStorage(d, info, volume)
	}
	version := d.VmfsVersion
	orElse(&version, "6.82")
	return &types.VmfsDatastoreInfo{DatastoreInfo: info, MaxPhysicalRDMFileSize: 64 << 40, MaxVirtualRDMFileSize: 62 << 40,
		Vmfs: &types.HostVmfsVolume{HostFileSystemVolume: volume, BlockSizeMb: 1, BlockSize: 1024, UnmapGranularity: 1024,
			UnmapPriority: "low", MaxBlocks: 63963136, MajorVersion: int32(version[0] - '0'), Version: version, Uuid: vmfs,
			Extent: vmfsExtents(d), Ssd: types.NewBool(true), Local: types.NewBool(false)}}
}

// nasVolume tells of the server as ESXi does: version 3 has one host, version 4.1 lists its addresses.
func nasVolume(d *SiteDatastore, volume types.HostFileSystemVolume) *types.HostNasVolume {
	host, remote, hosts := d.RemoteHost, d.RemotePath, d.RemoteHosts
	if host == "" && len(hosts) > 0 {
		host = hosts[0]
	}
	orElse(&host, "127.0.0.1")
	orElse(&remote, d.Path)
	if len(hosts) == 0 {
		hosts = []string{host}
	}
	return &types.HostNasVolume{HostFileSystemVolume: volume, RemoteHost: host, RemotePath: remote, RemoteHostNames: hosts,
		SecurityType: "AUTH_SYS", UserName: ""}
}

func vmfsExtents(d *SiteDatastore) []types.HostScsiDiskPartition {
	extents := []types.HostScsiDiskPartition{}
	for _, e := range d.Extents {
		extents = append(extents, types.HostScsiDiskPartition{DiskName: e.DiskName, Partition: e.Partition})
	}
	if len(extents) > 0 {
		return extents
	}
	name := d.ExtentName
	if name == "" {
		sum := fnv.New64a()
		_, _ = sum.Write([]byte(d.Path))
		name = fmt.Sprintf("naa.6001405%s%016x", "a1b2c3d4e", sum.Sum64())
	}
	return append(extents, types.HostScsiDiskPartition{DiskName: name, Partition: 1})
}

// findNetwork looks a network up by name in the VM's datacenter.
func (l *lab) findNetwork(vm *simulator.VirtualMachine, name string) *types.ManagedObjectReference {
	dc := datacenterOf(vm)
	if dc == nil {
		return nil
	}
	if e := simulator.Map.FindByName(name, dc.Network); e != nil {
		ref := e.Reference()
		return &ref
	}
	return nil
}

func datacenterOf(e mo.Entity) *simulator.Datacenter {
	for e != nil {
		if dc, ok := e.(*simulator.Datacenter); ok {
			return dc
		}
		p := e.Entity().Parent
		if p == nil {
			return nil
		}
		e, _ = simulator.Map.Get(*p).(mo.Entity)
	}
	return nil
}

func (b *builder) vm(v *SiteVM) error {
	var dc *simulator.Datacenter
	for _, e := range simulator.Map.All("Datacenter") {
		if e.Entity().Name == v.Datacenter {
			dc = e.(*simulator.Datacenter)
		}
	}
	folder, err := b.folder(dc, v.Folder)
	if err != nil {
		return err
	}
	host, pool, err := placeOf(dc, v)
	if err != nil {
		return err
	}
	home := b.l.site.datacenter(v.Datacenter).Datastores[0].Name
	if len(v.Disks) > 0 {
		home = v.Disks[0].Datastore
	}
	spec := types.VirtualMachineConfigSpec{Name: v.Name, GuestId: v.GuestID, Annotation: v.Annotation, MemoryMB: v.MemoryMB,
		NumCPUs: v.CPUs, NumCoresPerSocket: 1, Firmware: v.Firmware, Version: v.Version,
		Uuid: v.UUID, InstanceUuid: vmUUID("50", v), Files: &types.VirtualMachineFileInfo{VmPathName: "[" + home + "]"}}
	if v.CBT {
		spec.ChangeTrackingEnabled = types.NewBool(true)
	}
	spec.DeviceChange = b.controllers(v)
	for k, value := range v.ExtraConfig {
		spec.ExtraConfig = append(spec.ExtraConfig, &types.OptionValue{Key: k, Value: value})
	}
	vm, f := b.l.newVM(&types.CreateVM_Task{This: folder, Config: spec, Pool: pool, Host: &host.Self})
	if f != nil {
		return fmt.Errorf("%T %s", f, faultText(f))
	}
	b.l.setFacts(vm, v)
	if err := b.disks(vm, v); err != nil {
		return err
	}
	b.l.changing(vm)() // they have changed
	nvram := strings.TrimSuffix(hostPath(vm, vm.Config.Files.VmPathName), ".vmx") + ".nvram"
	if err := os.WriteFile(nvram, firmwareVariables(v), 0o600); err != nil {
		return err
	}
	if v.GuestView != "" {
		b.l.mu.Lock()
		b.l.guests[vm.Self.Value] = v.GuestView
		b.l.mu.Unlock()
	}
	if v.Power == "on" {
		b.l.setPower(vm, types.VirtualMachinePowerStatePoweredOn)
	}
	if v.Template {
		b.l.edit(vm, func() []types.PropertyChange { vm.Config.Template, vm.Summary.Config.Template = true, true; return nil })
	}
	writeVMX(vm)
	return nil
}

// firmwareVariables is a .nvram file of the usual size, different for every VM.
func firmwareVariables(v *SiteVM) []byte {
	size := 8684
	if v.Firmware == "efi" {
		size = 270840
	}
	line := "MRVN " + v.Firmware + " " + vmUUID("42", v) + "\n"
	return []byte(strings.Repeat(line, size/len(line)+1)[:size])
}

func vmUUID(prefix string, v *SiteVM) string {
	return prefix + stableUUID("vm"+prefix, v.Datacenter+"/"+v.Folder+"/"+v.Name)[2:]
}

func placeOf(dc *simulator.Datacenter, v *SiteVM) (*simulator.HostSystem, types.ManagedObjectReference, error) {
	none := types.ManagedObjectReference{}
	folder := simulator.Map.Get(dc.HostFolder).(*simulator.Folder)
	c, ok := simulator.Map.FindByName(v.Cluster, folder.ChildEntity).(*simulator.ClusterComputeResource)
	if !ok || len(c.Host) == 0 {
		return nil, none, fmt.Errorf("cluster %q is unknown or empty", v.Cluster)
	}
	pool := *c.ResourcePool
	if v.Pool != "" {
		p := simulator.Map.FindByName(v.Pool, simulator.Map.Get(pool).(*simulator.ResourcePool).ResourcePool.ResourcePool)
		if p == nil {
			return nil, none, fmt.Errorf("resource pool %q is unknown", v.Pool)
		}
		pool = p.Reference()
	}
	ref := c.Host[0]
	if v.Host != "" {
		h := simulator.Map.FindByName(v.Host, c.Host)
		if h == nil {
			return nil, none, fmt.Errorf("host %q is not in cluster %s", v.Host, v.Cluster)
		}
		ref = h.Reference()
	}
	return simulator.Map.Get(ref).(*simulator.HostSystem), pool, nil
}

func addSpec(d types.BaseVirtualDevice) *types.VirtualDeviceConfigSpec {
	return &types.VirtualDeviceConfigSpec{Operation: types.VirtualDeviceConfigSpecOperationAdd, Device: d}
}

// controllers are those that the VM's disks need, and its network card.
func (b *builder) controllers(v *SiteVM) []types.BaseVirtualDeviceConfigSpec {
	var out []types.BaseVirtualDeviceConfigSpec
	seen := map[string]bool{}
	for _, d := range v.Disks {
		if seen[d.Controller] {
			continue
		}
		seen[d.Controller] = true
		switch d.Controller {
		case "sata":
			out = append(out, addSpec(&types.VirtualAHCIController{VirtualSATAController: types.VirtualSATAController{VirtualController: newController(-11)}}))
		case "ide": // every VM has two
		case "nvme":
			out = append(out, addSpec(&types.VirtualNVMEController{VirtualController: newController(-12)}))
		default:
			out = append(out, addSpec(&types.ParaVirtualSCSIController{VirtualSCSIController: types.VirtualSCSIController{
				VirtualController: newController(-10), SharedBus: types.VirtualSCSISharing(v.BusSharing), HotAddRemove: types.NewBool(true)}}))
		}
	}
	network := v.Network
	if nets := b.l.site.datacenter(v.Datacenter).Networks; network == "" && len(nets) > 0 {
		network = nets[0]
	}
	orElse(&network, "VM Network")
	nic := &types.VirtualVmxnet3{}
	nic.Key, nic.AddressType = -20, "assigned"
	nic.Backing = &types.VirtualEthernetCardNetworkBackingInfo{VirtualDeviceDeviceBackingInfo: types.VirtualDeviceDeviceBackingInfo{DeviceName: network}}
	return append(out, addSpec(nic))
}

func newController(key int32) types.VirtualController {
	return types.VirtualController{VirtualDevice: types.VirtualDevice{Key: key}}
}

var firstController = map[string]int32{"scsi": 1000, "sata": 15000, "nvme": 31000, "ide": 200}

// adapterOf is what a descriptor says of the controller that its disk was made for.
func adapterOf(controllerKey int32) string {
	if controllerKey < 1000 {
		return "ide"
	}
	return "lsilogic"
}

// disks puts every disk's file in place and attaches it.
func (b *builder) disks(vm *simulator.VirtualMachine, v *SiteVM) error {
	_, home := datastoreOf(vm, vm.Config.Files.VmPathName)
	for i := range v.Disks {
		d := &v.Disks[i]
		name := fmt.Sprintf("[%s] %s/%s.vmdk", d.Datastore, path.Dir(home.Path), v.Name)
		if i > 0 {
			name = fmt.Sprintf("[%s] %s/%s_%d.vmdk", d.Datastore, path.Dir(home.Path), v.Name, i)
		}
		flat := flatPath(vm, name)
		if flat == "" {
			return fmt.Errorf("disk %d: datastore %q is not on host %s", i, d.Datastore, v.Host)
		}
		if err := placeImage(flat, d); err != nil {
			return fmt.Errorf("disk %d: %w", i, err)
		}
		controller, ok := firstController[d.Controller]
		if !ok {
			return fmt.Errorf("disk %d: controller %q is none of scsi, sata, nvme, ide", i, d.Controller)
		}
		if d.RDM != "" {
			if err := b.l.addMapping(vm, name, d, controller); err != nil {
				return err
			}
			continue
		}
		id := newDiskUUID()
		if err := writeDescriptor(hostPath(vm, name), d.CapacityBytes, diskMeta{uuid: id, thin: d.Thin, adapter: adapterOf(controller), key: v.KeyID}); err != nil {
			return err
		}
		disk := &types.VirtualDisk{VirtualDevice: types.VirtualDevice{Key: -100, ControllerKey: controller}}
		disk.Backing = &types.VirtualDiskFlatVer2BackingInfo{
			VirtualDeviceFileBackingInfo: types.VirtualDeviceFileBackingInfo{FileName: name}, DiskMode: d.Mode, Uuid: id, Sharing: d.Sharing, EagerlyScrub: types.NewBool(d.Eager)}
		if f := b.l.applyDevices(vm, []types.BaseVirtualDeviceConfigSpec{addSpec(disk)}); f != nil {
			return fmt.Errorf("disk %d: %T %s", i, f, faultText(f))
		}
	}
	return nil
}

// placeImage moves an image to where the disk lies, or makes an empty sparse file.
func placeImage(flat string, d *SiteDisk) error {
	if err := os.MkdirAll(filepath.Dir(flat), 0o700); err != nil {
		return err
	}
	if d.Image == "" {
		return createSparse(flat, d.CapacityBytes)
	}
	if err := os.Rename(d.Image, flat); err != nil {
		// Another file system: copy, then take the image away as a rename would.
		if err := copySparse(flat, d.Image, func(float64) {}); err != nil {
			return err
		}
		logBad("image", os.Remove(d.Image))
	}
	return os.Truncate(flat, d.CapacityBytes)
}
