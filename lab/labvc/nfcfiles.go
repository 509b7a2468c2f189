package main

// NFC requests about a disk as a whole: open, descriptor keys, allocation.

import (
	"fmt"
	"io"
	"os"
	"path"
	"strconv"

	"github.com/vmware/govmomi/simulator"
)

const (
	openFileBytes  = 60
	openReadOnly   = 0x04
	allocBytes     = 48
	maxAllocChunks = 524288
	maxAllocChunk  = 1 << 40 // keeps chunk times count far from overflow
	minAllocChunk  = 64 << 10
)

type refusal struct {
	code uint64
	text string
}

func (s *nfcSession) openFile(m *aioMessage) error {
	if !m.need(openFileBytes) {
		return fmt.Errorf("OPEN_FILE of %d bytes", len(m.payload))
	}
	name, err := s.extra(le.Uint32(m.payload), maxPathBytes)
	if err != nil {
		return err
	}
	fileType, flags := le.Uint32(m.payload[16:]), le.Uint32(m.payload[20:])
	f, no := s.open(string(name), flags&openReadOnly == 0)
	if no != nil {
		if err := s.fail(m, no.code, no.text); err != nil {
			return err
		}
		return s.reply(m, make([]byte, len(m.payload)), nil)
	}
	fh := 0xffffffff80000000 | s.nextFH
	s.nextFH++
	s.files[fh] = f
	p := make([]byte, openFileBytes)
	le.PutUint64(p[8:], fh)
	le.PutUint32(p[16:], fileType)
	le.PutUint32(p[20:], flags)
	le.PutUint64(p[28:], uint64(f.capacity))
	le.PutUint32(p[36:], 512)
	cylinders, heads, sectors := geometry(f.capacity)
	le.PutUint32(p[40:], uint32(cylinders))
	le.PutUint32(p[44:], uint32(heads))
	le.PutUint32(p[48:], uint32(sectors))
	return s.reply(m, p, nil)
}

// open checks the ticket and the VM's state and opens the flat file.
func (s *nfcSession) open(name string, write bool) (*nfcFile, *refusal) {
	l, t := s.h.l, s.a.ticket
	if f := l.faults.take("nfc-refuse-open", func(f *fault) bool { return f.matchesPath(s.h.name, name) }); f != nil {
		no := &refusal{uint64(f.Code), f.Text}
		if no.code == 0 {
			no.code = 7
		}
		if no.text == "" {
			no.text = "NfcAioProcessOpenFileMsg: open of " + name + " refused"
		}
		return nil, no
	}
	denied := &refusal{11, "NfcAioProcessOpenFileMsg: permission check failed for " + name}
	defer l.lockVM(t.vm)()
	vm := getVM(t.vm)
	if vm != nil {
		defer l.changing(vm)()
	}
	if vm == nil || (write && !t.write) {
		return nil, denied
	}
	use := filesOf(vm)
	key, known := use.key[name]
	if !known || (t.key != 0 && t.key != key) {
		return nil, denied
	}
	if use.live[name] && poweredOn(vm) {
		return nil, &refusal{11, "NfcAioOpenFile: Thin/TBZ/Sparse disks cannot be opened in multiwriter mode: " + name}
	}
	flat := flatPath(vm, name)
	if other := writerOf(vm, flat); other != "" {
		return nil, &refusal{15, "NfcAioOpenFile: DiskLib error 16392: Failed to lock the file"}
	}
	mode := os.O_RDONLY
	if write {
		mode = os.O_RDWR
	}
	file, err := os.OpenFile(flat, mode, 0)
	if err != nil {
		return nil, &refusal{4, "NfcAioOpenFile: " + name + ": file not found"}
	}
	f := &nfcFile{file: file, path: name, flat: flat, writable: write}
	f.capacity, _ = sizes(flat)
	f.meta, _ = readDescriptor(hostPath(vm, name))
	if p := use.parent[name]; p != "" {
		f.parent = flatPath(vm, p)
	}
	if ds, _ := datastoreOf(vm, name); ds != nil && isNFS(ds.Summary.Type) {
		f.allAlloc = true
	}
	if write {
		f.ranges, err = dataRanges(file, 0, f.capacity)
		logBad("allocation of "+flat, err)
	}
	l.mu.Lock()
	l.open[flat]++
	l.mu.Unlock()
	return f, nil
}

// writerOf names a running VM other than vm that writes to the file (a hot-added disk of a restore).
func writerOf(vm *simulator.VirtualMachine, flat string) string {
	for _, o := range allVMs() {
		if o.Self == vm.Self || o.Runtime.Host == nil || !poweredOn(o) {
			continue
		}
		for _, d := range disksOf(o.Config.Hardware.Device) {
			if d.backing.DiskMode != "independent_nonpersistent" && flatPath(o, d.backing.FileName) == flat {
				return o.Name
			}
		}
	}
	return ""
}

func (s *nfcSession) ddbGet(m *aioMessage) error {
	if !m.need(16) {
		return fmt.Errorf("DDB_GET of %d bytes", len(m.payload))
	}
	key, err := s.extra(le.Uint32(m.payload[8:]), maxPathBytes)
	if err != nil {
		return err
	}
	f := s.files[le.Uint64(m.payload)]
	if f == nil {
		return s.fail(m, 3, "NfcAioProcessDdbGetMsg: invalid handle")
	}
	value := f.ddb(string(key))
	p := make([]byte, len(m.payload))
	le.PutUint32(p[12:], uint32(len(value)))
	return s.reply(m, p, []byte(value))
}

func (f *nfcFile) ddb(key string) string {
	cylinders, heads, sectors := geometry(f.capacity)
	switch key {
	case "adapterType":
		return "lsilogic"
	case "uuid":
		return spacedUUID(f.meta.uuid)
	case "geometry.cylinders", "geometry.biosCylinders":
		return strconv.FormatInt(cylinders, 10)
	case "geometry.heads", "geometry.biosHeads":
		return strconv.FormatInt(heads, 10)
	case "geometry.sectors", "geometry.biosSectors":
		return strconv.FormatInt(sectors, 10)
	case "logicalSectorSize", "physicalSectorSize":
		return "512"
	}
	return ""
}

func (s *nfcSession) allocated(m *aioMessage) error {
	if !m.need(allocBytes) {
		return fmt.Errorf("QUERY_ALLOCATED_BLOCKS of %d bytes", len(m.payload))
	}
	s.h.l.stats.host(s.h.name, func(t *hostStats) { t.AllocationCalls++ })
	f := s.files[le.Uint64(m.payload)]
	chunk, start, count := int64(le.Uint64(m.payload[16:])), int64(le.Uint64(m.payload[24:])), int64(le.Uint64(m.payload[32:]))
	switch {
	case f == nil:
		return s.fail(m, 3, "NfcAioProcessQueryAllocatedBlocksMsg: invalid handle")
	case s.h.l.faults.take("nfc-no-allocation", func(x *fault) bool { return x.matchesPath(s.h.name, f.path) }) != nil:
		return s.fail(m, 6, "NfcAioProcessQueryAllocatedBlocksMsg: not supported by this datastore")
	case chunk < minAllocChunk || chunk > maxAllocChunk || chunk%512 != 0 || start < 0 || start%chunk != 0 || count <= 0 || count > maxAllocChunks:
		return s.fail(m, 3, "NfcAioProcessQueryAllocatedBlocksMsg: misaligned or too many chunks")
	case start+count*chunk > f.capacity:
		return s.fail(m, 3, "NfcAioProcessQueryAllocatedBlocksMsg: range past the end of the disk")
	}
	ranges, err := f.allocation(start, start+count*chunk)
	if err != nil {
		return s.fail(m, 7, "NfcAioProcessQueryAllocatedBlocksMsg: "+err.Error())
	}
	p := make([]byte, len(m.payload))
	le.PutUint64(p[32:], uint64(count))
	return s.reply(m, p, allocationBitmap(ranges, start, chunk, count))
}

// allocation answers what the opened file holds. A delta holds what changed since its parent was
// frozen; a handle that writes knows only what was there when it was opened.
func (f *nfcFile) allocation(from, to int64) ([]byteRange, error) {
	switch {
	case f.allAlloc:
		return []byteRange{{from, to}}, nil
	case f.writable:
		return f.ranges, nil
	case f.parent == "":
		return dataRanges(f.file, from, to)
	case f.ranges == nil:
		now, err := readContentMap(f.flat)
		if err != nil {
			return nil, err
		}
		old, err := readContentMap(f.parent)
		if err != nil {
			return nil, err
		}
		f.ranges = grainsToRanges(changedGrains(old, now, 0), f.capacity)
	}
	return f.ranges, nil
}

// allocationBitmap sets the bit of every chunk that a range touches, lowest bit first, padded to
// whole 32-bit words.
func allocationBitmap(ranges []byteRange, start, chunk, count int64) []byte {
	bits := make([]byte, 4*((count+31)/32))
	for _, r := range ranges {
		if r.end <= start || r.start >= start+chunk*count {
			continue
		}
		first, last := (r.start-start)/chunk, (r.end-start-1)/chunk
		if r.start < start {
			first = 0
		}
		for i := first; i <= last && i < count; i++ {
			bits[i/8] |= 1 << (i % 8)
		}
	}
	return bits
}

// readFull reads a whole piece of the disk.
func (f *nfcFile) readFull(b []byte, off int64) error {
	n, err := f.file.ReadAt(b, off)
	if n == len(b) {
		return nil
	}
	if err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	return fmt.Errorf("read %s at %d: %w", path.Base(f.flat), off, err)
}
