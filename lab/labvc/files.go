package main

// A VM's files: where they are on this machine, disk descriptors, and what vCenter says about them.

import (
	"encoding/hex"
	"fmt"
	"os"
	"path"
	"regexp"
	"strings"
	"syscall"
	"time"

	"github.com/google/uuid"
	"github.com/vmware/govmomi/object"
	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/types"
)

const flatSuffix = "-flat.vmdk"

// datastoreOf finds the datastore of a path like "[ds] vm/vm.vmdk" among those of the VM's host.
func datastoreOf(vm *simulator.VirtualMachine, name string) (*simulator.Datastore, object.DatastorePath) {
	var p object.DatastorePath
	if !p.FromString(name) {
		return nil, p
	}
	host := simulator.Map.Get(*vm.Runtime.Host).(*simulator.HostSystem)
	for _, ref := range host.Datastore {
		if ds, ok := simulator.Map.Get(ref).(*simulator.Datastore); ok && ds.Name == p.Datastore {
			return ds, p
		}
	}
	return nil, p
}

// hostPath is where a datastore path lies on this machine, "" for an unknown datastore or a path
// that leaves it.
func hostPath(vm *simulator.VirtualMachine, name string) string {
	ds, p := datastoreOf(vm, name)
	if ds == nil {
		return ""
	}
	root := ds.Info.GetDatastoreInfo().Url
	full := path.Join(root, p.Path)
	if full != root && !strings.HasPrefix(full, root+"/") {
		return ""
	}
	return full
}

func flatName(descriptor string) string { return strings.TrimSuffix(descriptor, ".vmdk") + flatSuffix }

func flatPath(vm *simulator.VirtualMachine, name string) string {
	p := hostPath(vm, name)
	if p == "" {
		return ""
	}
	return flatName(p)
}

func exists(file string) bool {
	_, err := os.Stat(file)
	return err == nil
}

func newDiskUUID() string {
	u := uuid.New()
	copy(u[:], []byte{0x60, 0x00, 0xC2, 0x90 | u[3]&0x0f})
	return u.String()
}

// spacedUUID is the form of a descriptor: "60 00 C2 9a 01 02 03 04-05 ...".
func spacedUUID(s string) string {
	b, err := hex.DecodeString(strings.ReplaceAll(s, "-", ""))
	if err != nil || len(b) != 16 {
		return s
	}
	h := fmt.Sprintf("% x", b)
	return h[:23] + "-" + h[24:]
}

type diskMeta struct {
	uuid    string
	parent  string // the parent descriptor's file name in the same folder
	thin    bool
	key     string // of an encrypted disk
	adapter string // "lsilogic" when empty, or "ide"
}

var (
	ddbUUID   = regexp.MustCompile(`(?m)^ddb\.uuid = "([^"]+)"`)
	ddbIDE    = regexp.MustCompile(`(?m)^ddb\.adapterType = "ide"`)
	ddbKey    = regexp.MustCompile(`(?m)^ddb\.keyId = "([^"]+)"`)
	ddbThin   = regexp.MustCompile(`(?m)^ddb\.thinProvisioned = "1"`)
	ddbParent = regexp.MustCompile(`(?m)^parentFileNameHint="([^"]+)"`)
)

func writeDescriptor(file string, capacity int64, m diskMeta) error {
	orElse(&m.adapter, "lsilogic")
	var b strings.Builder
	parentCID, kind, extent, data := "ffffffff", "vmfs", "VMFS", path.Base(flatName(file))
	if m.parent != "" { // what a real host says of a delta; the file here holds the whole disk
		parentCID, kind, extent = "fffffffe", "seSparse", "SESPARSE"
		data = strings.TrimSuffix(path.Base(file), ".vmdk") + "-sesparse.vmdk"
	}
	fmt.Fprintf(&b, "# Disk DescriptorFile\nversion=1\nencoding=\"UTF-8\"\nCID=fffffffe\nparentCID=%s\ncreateType=\"%s\"\n", parentCID, kind)
	if m.parent != "" {
		fmt.Fprintf(&b, "parentFileNameHint=\"%s\"\n", m.parent)
	}
	cylinders, heads, sectors := geometry(capacity)
	fmt.Fprintf(&b, "\n# Extent description\nRW %d %s \"%s\"\n\n# The Disk Data Base\n#DDB\n\n", capacity/512, extent, data)
	fmt.Fprintf(&b, "ddb.adapterType = \"%s\"\nddb.geometry.cylinders = \"%d\"\nddb.geometry.heads = \"%d\"\nddb.geometry.sectors = \"%d\"\n",
		m.adapter, cylinders, heads, sectors)
	if m.thin {
		b.WriteString("ddb.thinProvisioned = \"1\"\n")
	}
	if m.key != "" {
		fmt.Fprintf(&b, "ddb.keyId = \"%s\"\n", m.key)
	}
	fmt.Fprintf(&b, "ddb.uuid = \"%s\"\nddb.virtualHWVersion = \"19\"\n", spacedUUID(m.uuid))
	return os.WriteFile(file, []byte(b.String()), 0o600)
}

func readDescriptor(file string) (diskMeta, error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return diskMeta{}, err
	}
	m := diskMeta{thin: ddbThin.Match(b)}
	if s := ddbKey.FindSubmatch(b); s != nil {
		m.key = string(s[1])
	}
	if ddbIDE.Match(b) {
		m.adapter = "ide"
	}
	if s := ddbUUID.FindSubmatch(b); s != nil {
		raw, err := hex.DecodeString(strings.NewReplacer(" ", "", "-", "").Replace(string(s[1])))
		if err == nil && len(raw) == 16 {
			u, _ := uuid.FromBytes(raw)
			m.uuid = u.String()
		}
	}
	if s := ddbParent.FindSubmatch(b); s != nil {
		m.parent = string(s[1])
	}
	return m, nil
}

// geometry is the CHS description of a disk; it rounds down, as real ones do.
func geometry(capacity int64) (cylinders, heads, sectors int64) {
	heads, sectors = 255, 63
	if capacity < 1<<30 {
		heads, sectors = 64, 32
	}
	return capacity / 512 / (heads * sectors), heads, sectors
}

// sizes gives a file's length and what it takes on the datastore.
func sizes(file string) (length, taken int64) {
	var st syscall.Stat_t
	if file == "" || syscall.Stat(file, &st) != nil {
		return 0, 0
	}
	return st.Size, st.Blocks * 512
}

// layout describes the files of a VM; it is made anew after every change of disks or snapshots.
type layout struct {
	vm  *simulator.VirtualMachine
	ex  types.VirtualMachineFileLayoutEx
	key map[string]int32
}

func (y *layout) add(name, kind string) int32 {
	if k, ok := y.key[name]; ok {
		return k
	}
	length, taken := sizes(hostPath(y.vm, name))
	if kind == "diskExtent" {
		length = taken
	}
	k := int32(len(y.ex.File))
	y.key[name] = k
	y.ex.File = append(y.ex.File, types.VirtualMachineFileLayoutExFileInfo{
		Key: k, Name: name, Type: kind, Size: length, UniqueSize: length, Accessible: types.NewBool(true)})
	return k
}

func (y *layout) disks(devs []types.BaseVirtualDevice) []types.VirtualMachineFileLayoutExDiskLayout {
	var out []types.VirtualMachineFileLayoutExDiskLayout
	for _, d := range disksOf(devs) {
		var chain []types.VirtualMachineFileLayoutExDiskUnit
		files := chainOf(d.backing)
		for i := len(files) - 1; i >= 0; i-- { // base first, as vCenter lists it
			chain = append(chain, types.VirtualMachineFileLayoutExDiskUnit{FileKey: []int32{
				y.add(files[i], "diskDescriptor"), y.add(flatName(files[i]), "diskExtent")}})
		}
		out = append(out, types.VirtualMachineFileLayoutExDiskLayout{Key: d.disk.Key, Chain: chain})
	}
	return out
}

// refreshLayout is called within edit.
func refreshLayout(vm *simulator.VirtualMachine) []types.PropertyChange {
	y := &layout{vm: vm, key: map[string]int32{}}
	vmx := vm.Config.Files.VmPathName
	base := strings.TrimSuffix(vmx, ".vmx")
	y.add(vmx, "config")
	y.add(base+".nvram", "nvram")
	y.add(base+".vmsd", "snapshotList")
	y.add(path.Dir(vmx)+"/vmware.log", "log")
	y.ex.Disk = y.disks(vm.Config.Hardware.Device)
	for _, s := range snapshotsOf(vm) {
		y.ex.Snapshot = append(y.ex.Snapshot, types.VirtualMachineFileLayoutExSnapshotLayout{
			Key: s.Self, DataKey: y.add(snapshotFile(vm, s.Self), "snapshotData"), MemoryKey: -1, Disk: y.disks(s.Config.Hardware.Device)})
	}
	y.ex.Timestamp = time.Now()
	vm.LayoutEx = &y.ex
	usage := map[string]*types.VirtualMachineUsageOnDatastore{}
	vm.Datastore = nil
	total := types.VirtualMachineStorageSummary{Timestamp: time.Now()}
	storage := &types.VirtualMachineStorageInfo{Timestamp: time.Now()}
	for _, f := range y.ex.File {
		ds, _ := datastoreOf(vm, f.Name)
		if ds == nil {
			continue
		}
		if usage[ds.Self.Value] == nil {
			usage[ds.Self.Value] = &types.VirtualMachineUsageOnDatastore{Datastore: ds.Self}
			vm.Datastore = append(vm.Datastore, ds.Self)
			simulator.Map.AddReference(ds, &ds.Vm, vm.Self)
		}
		usage[ds.Self.Value].Committed += f.Size
		usage[ds.Self.Value].Unshared += f.Size
		total.Committed += f.Size
	}
	total.Unshared = total.Committed
	for _, d := range disksOf(vm.Config.Hardware.Device) {
		if _, taken := sizes(flatPath(vm, d.backing.FileName)); d.capacity() > taken {
			total.Uncommitted += d.capacity() - taken
		}
	}
	for _, ref := range vm.Datastore {
		storage.PerDatastoreUsage = append(storage.PerDatastoreUsage, *usage[ref.Value])
	}
	vm.Storage, vm.Summary.Storage = storage, &total
	return []types.PropertyChange{{Name: "layoutEx.timestamp", Val: y.ex.Timestamp}}
}

// refreshSpace brings a datastore's free space up to date: capacity minus what files take.
func (l *lab) refreshSpace(ds *simulator.Datastore) {
	var used int64
	walkFiles(ds.Info.GetDatastoreInfo().Url, func(file string) {
		_, taken := sizes(file)
		used += taken
	})
	free := ds.Summary.Capacity - used
	if free < 0 {
		free = 0
	}
	now := time.Now()
	l.edit(ds, func() []types.PropertyChange {
		info := ds.Info.GetDatastoreInfo()
		info.FreeSpace, info.Timestamp = free, &now
		return []types.PropertyChange{{Name: "summary.freeSpace", Val: free}, {Name: "summary.uncommitted", Val: int64(0)}}
	})
}

func walkFiles(dir string, f func(file string)) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return
	}
	for _, e := range entries {
		if e.IsDir() {
			walkFiles(path.Join(dir, e.Name()), f)
		} else {
			f(path.Join(dir, e.Name()))
		}
	}
}

func (l *lab) refreshSpaceOf(vm *simulator.VirtualMachine) {
	for _, ref := range vm.Datastore {
		if ds, ok := simulator.Map.Get(ref).(*simulator.Datastore); ok {
			l.refreshSpace(ds)
		}
	}
}

func (l *lab) refreshDatastore(q *request) {
	ds, ok := simulator.Map.Get(q.call.This.ref()).(*simulator.Datastore)
	if !ok {
		q.fail(notFound(q.call.This.ref()))
		return
	}
	l.refreshSpace(ds)
	q.answer("")
}

func (l *lab) refreshStorageInfo(q *request) {
	vm := getVM(q.call.This.ref())
	if vm == nil {
		q.fail(notFound(q.call.This.ref()))
		return
	}
	l.edit(vm, func() []types.PropertyChange { return refreshLayout(vm) })
	q.answer("")
}

// writeVMX keeps a plausible .vmx, so that reading the configuration file gives something.
func writeVMX(vm *simulator.VirtualMachine) {
	file := hostPath(vm, vm.Config.Files.VmPathName)
	if file == "" || !exists(path.Dir(file)) {
		return
	}
	var b strings.Builder
	line := func(k, v string) { fmt.Fprintf(&b, "%s = \"%s\"\n", k, strings.ReplaceAll(v, `"`, "|22")) }
	line(".encoding", "UTF-8")
	line("config.version", "8")
	line("virtualHW.version", strings.TrimPrefix(vm.Config.Version, "vmx-"))
	line("displayName", vm.Name)
	line("guestOS", vm.Config.GuestId)
	line("firmware", vm.Config.Firmware)
	line("memSize", fmt.Sprint(vm.Config.Hardware.MemoryMB))
	line("numvcpus", fmt.Sprint(vm.Config.Hardware.NumCPU))
	line("uuid.bios", spacedUUID(vm.Config.Uuid))
	line("vc.uuid", spacedUUID(vm.Config.InstanceUuid))
	line("nvram", vm.Name+".nvram")
	if cbtOn(vm) {
		line("ctkEnabled", "TRUE")
	}
	for _, d := range disksOf(vm.Config.Hardware.Device) {
		prefix := diskAddress(vm.Config.Hardware.Device, d.disk)
		line(prefix+".present", "TRUE")
		line(prefix+".fileName", path.Base(d.backing.FileName))
		if cbtOn(vm) && !independent(d.backing) {
			line(prefix+".ctkEnabled", "TRUE")
		}
	}
	for _, o := range vm.Config.ExtraConfig {
		if key := o.GetOptionValue().Key; key != "nvram" {
			line(key, fmt.Sprint(o.GetOptionValue().Value))
		}
	}
	logBad("write "+file, os.WriteFile(file, []byte(b.String()), 0o600))
}
