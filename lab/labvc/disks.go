package main

// Virtual disks and the chains of files behind them.
//
// Every file of a chain holds the whole disk as it was when it was frozen; the last one is what the
// VM writes to. So a frozen file needs nothing of its parents to be read, and folding a child into
// its parent is a rename. The inode that the VM writes to stays the same through all of this.

import (
	"fmt"
	"os"
	"path"
	"regexp"
	"strings"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/types"
)

type vdisk struct {
	disk    *types.VirtualDisk
	backing *types.VirtualDiskFlatVer2BackingInfo
	index   int
}

func (d vdisk) capacity() int64 {
	if d.disk.CapacityInBytes > 0 {
		return d.disk.CapacityInBytes
	}
	return d.disk.CapacityInKB << 10
}

func disksOf(devs []types.BaseVirtualDevice) []vdisk {
	var out []vdisk
	for i, dev := range devs {
		if d, ok := dev.(*types.VirtualDisk); ok {
			if b, ok := d.Backing.(*types.VirtualDiskFlatVer2BackingInfo); ok {
				out = append(out, vdisk{d, b, i})
			}
		}
	}
	return out
}

func independent(b *types.VirtualDiskFlatVer2BackingInfo) bool {
	return strings.HasPrefix(b.DiskMode, "independent")
}

// chainOf lists the files of a disk, the one in use first.
func chainOf(b *types.VirtualDiskFlatVer2BackingInfo) []string {
	var out []string
	for ; b != nil; b = b.Parent {
		out = append(out, b.FileName)
	}
	return out
}

// withChain is a copy of a backing for other files.
func withChain(b types.VirtualDiskFlatVer2BackingInfo, files []string) *types.VirtualDiskFlatVer2BackingInfo {
	b.FileName, b.Parent = files[0], nil
	if len(files) > 1 {
		p := b
		p.ChangeId = ""
		b.Parent = withChain(p, files[1:])
	}
	return &b
}

// ownDisks copies a device list so that its disks can be changed without anybody else seeing it.
func ownDisks(devs []types.BaseVirtualDevice) []types.BaseVirtualDevice {
	out := append([]types.BaseVirtualDevice(nil), devs...)
	for _, d := range disksOf(out) {
		c := *d.disk
		c.Backing = withChain(*d.backing, chainOf(d.backing))
		if d.disk.DeviceInfo != nil {
			info := *d.disk.DeviceInfo.GetDescription()
			c.DeviceInfo = &info
		}
		out[d.index] = &c
	}
	return out
}

var childRE = regexp.MustCompile(`-\d{6}\.vmdk$`)

// childName is the first free name like vm-000001.vmdk.
func childName(vm *simulator.VirtualMachine, file string) string {
	base := strings.TrimSuffix(childRE.ReplaceAllString(file, ".vmdk"), ".vmdk")
	for n := 1; ; n++ {
		c := fmt.Sprintf("%s-%06d.vmdk", base, n)
		if !exists(flatPath(vm, c)) && !exists(hostPath(vm, c)) {
			return c
		}
	}
}

// fileUse tells what a VM's configuration and snapshots do with files.
type fileUse struct {
	parent map[string]string // file -> parent, "" for a base
	pinned map[string]bool   // ends of chains: the VM's own and the snapshots'
	key    map[string]int32  // file -> device key
	live   map[string]bool   // files that the VM itself writes to
}

func (u *fileUse) add(devs []types.BaseVirtualDevice, isLive bool) {
	for _, d := range disksOf(devs) {
		files := chainOf(d.backing)
		u.pinned[files[0]] = true
		if isLive {
			u.live[files[0]] = true
		}
		for i, f := range files {
			u.key[f] = d.disk.Key
			u.parent[f] = ""
			if i+1 < len(files) {
				u.parent[f] = files[i+1]
			}
		}
	}
}

func filesOf(vm *simulator.VirtualMachine) *fileUse {
	u := &fileUse{parent: map[string]string{}, pinned: map[string]bool{}, key: map[string]int32{}, live: map[string]bool{}}
	for _, s := range snapshotsOf(vm) {
		u.add(s.Config.Hardware.Device, false)
	}
	u.add(vm.Config.Hardware.Device, true)
	return u
}

// usedByOther says whether another VM has a file of this one attached (a hot-added disk).
func usedByOther(vm *simulator.VirtualMachine, flat string) string {
	for _, o := range allVMs() {
		if o.Self == vm.Self || o.Runtime.Host == nil {
			continue
		}
		for f := range filesOf(o).parent {
			if flatPath(o, f) == flat {
				return o.Name
			}
		}
	}
	return ""
}

// lockedBy says who holds a file of the VM: an NFC session or another VM.
func (l *lab) lockedBy(vm *simulator.VirtualMachine, name string) string {
	flat := flatPath(vm, name)
	if l.nfcOpen(flat) {
		return "an NFC session"
	}
	return usedByOther(vm, flat)
}

func (l *lab) nfcOpen(flat string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.open[flat] > 0
}

// collapse folds every file that nothing needs any more into its child's place, and deletes the
// files among `before` that are in no chain now. It answers the file that could not be folded
// because it is locked.
func (l *lab) collapse(vm *simulator.VirtualMachine, before *fileUse) string {
	use := filesOf(vm)
	foreign := map[string]bool{}
	for _, d := range disksOf(vm.Config.Hardware.Device) {
		if independent(d.backing) {
			for _, f := range chainOf(d.backing) {
				foreign[f] = true
			}
		}
	}
	renamed := map[string]string{}
	locked := ""
	for again := true; again; {
		again = false
		for file := range use.parent {
			child, n := onlyChild(use, file)
			if use.pinned[file] || foreign[file] || n != 1 {
				continue
			}
			if l.lockedBy(vm, file) != "" || l.lockedBy(vm, child) != "" {
				locked = file
				continue
			}
			if err := foldFiles(vm, file, child); err != nil {
				logBad("fold "+child, err)
				locked = file
				continue
			}
			use.fold(file, child)
			renamed[child] = file
			again = true
			break
		}
	}
	l.renameFiles(vm, renamed)
	now := filesOf(vm)
	for f := range before.parent {
		if _, still := now.parent[f]; !still && renamed[f] == "" {
			if l.lockedBy(vm, f) != "" {
				locked = f
				continue
			}
			removeDiskFiles(vm, f)
		}
	}
	l.edit(vm, func() []types.PropertyChange { return refreshLayout(vm) })
	return locked
}

func onlyChild(use *fileUse, file string) (child string, n int) {
	for c, p := range use.parent {
		if p == file {
			child, n = c, n+1
		}
	}
	return child, n
}

func (u *fileUse) fold(file, child string) {
	delete(u.parent, child)
	for f, p := range u.parent {
		if p == child {
			u.parent[f] = file
		}
	}
	u.pinned[file] = u.pinned[child]
	delete(u.pinned, child)
}

// foldFiles lets the child's content, and its inode, take the parent's name.
func foldFiles(vm *simulator.VirtualMachine, file, child string) error {
	if err := os.Rename(flatPath(vm, child), flatPath(vm, file)); err != nil {
		return err
	}
	return os.Remove(hostPath(vm, child))
}

func removeDiskFiles(vm *simulator.VirtualMachine, name string) {
	for _, f := range []string{flatPath(vm, name), hostPath(vm, name)} {
		if err := os.Remove(f); err != nil && !os.IsNotExist(err) {
			logBad("delete", err)
		}
	}
}

// renameFiles replaces file names in the chains of the VM and its snapshots.
func (l *lab) renameFiles(vm *simulator.VirtualMachine, renamed map[string]string) {
	if len(renamed) == 0 {
		return
	}
	for _, s := range snapshotsOf(vm) {
		devs := renameChains(s.Config.Hardware.Device, renamed)
		l.edit(s, func() []types.PropertyChange { s.Config.Hardware.Device = devs; return nil })
	}
	devs := renameChains(vm.Config.Hardware.Device, renamed)
	for _, d := range disksOf(devs) {
		l.relabelParent(vm, d)
	}
	l.setDevices(vm, devs)
}

func renameChains(devs []types.BaseVirtualDevice, renamed map[string]string) []types.BaseVirtualDevice {
	out := ownDisks(devs)
	for _, d := range disksOf(out) {
		var files []string
		for _, f := range chainOf(d.backing) {
			for renamed[f] != "" {
				f = renamed[f]
			}
			if len(files) == 0 || files[len(files)-1] != f {
				files = append(files, f)
			}
		}
		d.disk.Backing = withChain(*d.backing, files)
	}
	return out
}

// relabelParent writes the live file's descriptor anew, for its parent may have another name now.
func (l *lab) relabelParent(vm *simulator.VirtualMachine, d vdisk) {
	file := hostPath(vm, d.backing.FileName)
	if file == "" || independent(d.backing) {
		return
	}
	m := diskMeta{uuid: d.backing.Uuid, thin: isTrue(d.backing.ThinProvisioned), adapter: adapterOf(d.disk.ControllerKey), key: keyName(d.backing.KeyId)}
	if d.backing.Parent != nil {
		m.parent = path.Base(d.backing.Parent.FileName)
	}
	logBad("descriptor", writeDescriptor(file, d.capacity(), m))
}

func (l *lab) setDevices(vm *simulator.VirtualMachine, devs []types.BaseVirtualDevice) {
	l.edit(vm, func() []types.PropertyChange {
		return append([]types.PropertyChange{{Name: "config.hardware.device", Val: devs}}, refreshLayout(vm)...)
	})
}

func isTrue(b *bool) bool { return b != nil && *b }
