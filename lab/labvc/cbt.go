package main

// Changed block tracking, answered from what really differs between two frozen states of a disk.

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/google/uuid"
	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/types"
)

// maxAreas is how many areas one answer holds at most; a real host stops at about that many too.
const maxAreas = 2000

// track is the change history of one disk since its epoch began.
type track struct {
	epoch  string
	seq    int
	noStar bool // tracking began while snapshots existed: "*" is not known
	maps   map[string]*contentMap
}

func newEpoch() string {
	b := uuid.New()
	h := fmt.Sprintf("% x", b[:])
	return h[:23] + "-" + h[24:]
}

func cbtOn(vm *simulator.VirtualMachine) bool { return isTrue(vm.Config.ChangeTrackingEnabled) }

func trackKey(vm *simulator.VirtualMachine, key int32) string {
	return vm.Self.Value + "/" + strconv.Itoa(int(key))
}

// record notes a frozen disk's content and answers its change id and that of the child, which a
// query does not know.
func (l *lab) record(vm *simulator.VirtualMachine, key int32, m *contentMap) (frozen, child string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	k := trackKey(vm, key)
	t := l.tracks[k]
	if t == nil {
		t = &track{epoch: newEpoch(), noStar: l.noStar[vm.Self.Value], maps: map[string]*contentMap{}}
		l.tracks[k] = t
	}
	t.seq += 2
	frozen = t.epoch + "/" + strconv.Itoa(t.seq-1)
	t.maps[frozen] = m
	return frozen, t.epoch + "/" + strconv.Itoa(t.seq)
}

// loseTracking ends the epoch of one disk, or of all disks of the VM when key is 0.
func (l *lab) loseTracking(vm *simulator.VirtualMachine, key int32) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for k := range l.tracks {
		if k == trackKey(vm, key) || (key == 0 && strings.HasPrefix(k, vm.Self.Value+"/")) {
			delete(l.tracks, k)
		}
	}
}

func (l *lab) queryChangedDiskAreas(q *request) {
	body, err := q.typed()
	if err != nil {
		q.fail(invalidArgument("startOffset"))
		return
	}
	info, f := l.changedAreas(body.(*types.QueryChangedDiskAreas))
	if f != nil {
		q.fail(f)
		return
	}
	q.answerValue(*info)
}

func (l *lab) changedAreas(r *types.QueryChangedDiskAreas) (*types.DiskChangeInfo, types.BaseMethodFault) {
	vm := getVM(r.This)
	if vm == nil {
		return nil, notFound(r.This)
	}
	devs := vm.Config.Hardware.Device
	if r.Snapshot != nil {
		s := getSnapshot(*r.Snapshot)
		if s == nil || s.Vm != vm.Self {
			return nil, notFound(*r.Snapshot)
		}
		devs = s.Config.Hardware.Device
	}
	for _, d := range disksOf(devs) {
		if d.disk.Key == r.DeviceKey && !independent(d.backing) {
			return l.changedAreasOf(vm, d, r)
		}
	}
	return nil, invalidArgument("deviceKey")
}

func (l *lab) changedAreasOf(vm *simulator.VirtualMachine, d vdisk, r *types.QueryChangedDiskAreas) (*types.DiskChangeInfo, types.BaseMethodFault) {
	byVM := func(f *fault) bool { return f.VM == "" || f.VM == vm.Name }
	if f := l.faults.take("cbt-fault", byVM); f != nil {
		return nil, fileFault(f.FaultKey, d.backing.FileName)
	}
	if r.Snapshot == nil && poweredOn(vm) {
		return nil, fileFault("", d.backing.FileName)
	}
	if r.StartOffset < 0 || r.StartOffset >= d.capacity() {
		return nil, invalidArgument("startOffset")
	}
	if r.ChangeId != "*" && !strings.Contains(r.ChangeId, "/") {
		return nil, invalidArgument("changeId")
	}
	now, old, fault := l.mapsFor(vm, d, r)
	if fault != nil {
		return nil, fault
	}
	info := l.page(vm, d, now, old, r)
	if f := l.faults.take("cbt-gap", byVM); f != nil {
		info.StartOffset += grainBytes
	}
	if l.faults.due("cbt-lies", byVM) && len(info.ChangedArea) > 1 {
		l.faults.take("cbt-lies", byVM)
		kept := info.ChangedArea[:0]
		for i, a := range info.ChangedArea {
			if i%2 == 0 {
				kept = append(kept, a)
			}
		}
		info.ChangedArea = kept
	}
	return info, nil
}

// mapsFor finds the content asked about and the content to compare with (nil for "*").
func (l *lab) mapsFor(vm *simulator.VirtualMachine, d vdisk, r *types.QueryChangedDiskAreas) (now, old *contentMap, f types.BaseMethodFault) {
	l.mu.Lock()
	t := l.tracks[trackKey(vm, d.disk.Key)]
	var star bool
	if t != nil {
		now, old, star = t.maps[d.backing.ChangeId], t.maps[r.ChangeId], !t.noStar
	}
	l.mu.Unlock()
	if d.backing.ChangeId == "" || !cbtOn(vm) {
		return nil, nil, fileFault("vim.hostd.vmsvc.cbt.noTrack", d.backing.FileName)
	}
	if t == nil {
		return nil, nil, fileFault("vim.hostd.vmsvc.cbt.cannotGetChanges", d.backing.FileName)
	}
	if r.Snapshot == nil {
		m, err := readContentMap(flatPath(vm, d.backing.FileName))
		if err != nil {
			return nil, nil, fileFault("", d.backing.FileName)
		}
		now = m
	}
	switch {
	case now == nil:
		return nil, nil, fileFault("vim.hostd.vmsvc.cbt.cannotGetChanges", d.backing.FileName)
	case r.ChangeId == "*" && !star:
		return nil, nil, fileFault("vim.hostd.vmsvc.cbt.noEpoch", d.backing.FileName)
	case r.ChangeId == "*":
		return now, nil, nil
	case old == nil || old.size != now.size:
		return nil, nil, fileFault("vim.hostd.vmsvc.cbt.cannotGetChanges", d.backing.FileName)
	}
	return now, old, nil
}

// page describes the disk from the start offset as far as one answer goes.
func (l *lab) page(vm *simulator.VirtualMachine, d vdisk, now, old *contentMap, r *types.QueryChangedDiskAreas) *types.DiskChangeInfo {
	size := d.capacity()
	end := size
	if p := l.site.CBTPageBytes; p > 0 && r.StartOffset+p < size {
		end = r.StartOffset + p
	}
	info := &types.DiskChangeInfo{StartOffset: r.StartOffset}
	ranges := []byteRange{{0, size}} // NFS knows nothing of allocation: one area, the whole disk
	if old != nil {
		ranges = grainsToRanges(changedGrains(old, now, r.StartOffset/grainBytes), size)
	} else if ds, _ := datastoreOf(vm, d.backing.FileName); ds == nil || !isNFS(ds.Summary.Type) {
		ranges = grainsToRanges(now.allocated(r.StartOffset/grainBytes), size)
	}
	for _, c := range ranges {
		if c.start < r.StartOffset {
			c.start = r.StartOffset
		}
		if c.start >= end {
			break
		}
		if len(info.ChangedArea) == maxAreas {
			end = c.start
			break
		}
		if c.end > end {
			c.end = end
		}
		if c.start < c.end {
			info.ChangedArea = append(info.ChangedArea, types.DiskChangeExtent{Start: c.start, Length: c.end - c.start})
		}
	}
	info.Length = end - r.StartOffset
	return info
}
