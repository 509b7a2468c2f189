package main

// Sparse files: where they hold data, copying them, and comparing their content by grains.

import (
	"fmt"
	"hash/maphash"
	"io"
	"os"
	"path/filepath"
	"syscall"
)

// grainBytes is the unit in which change tracking answers, as ESXi does.
const grainBytes = 64 << 10

const (
	seekData = 3
	seekHole = 4
	ficlone  = 0x40049409
)

type byteRange struct{ start, end int64 }

// dataRanges returns the exact parts of a file between from and to that are not holes.
func dataRanges(f *os.File, from, to int64) ([]byteRange, error) {
	var out []byteRange
	for off := from; off < to; {
		start, err := f.Seek(off, seekData)
		if isErrno(err, syscall.ENXIO) || (err == nil && start >= to) {
			break
		}
		if err != nil {
			return nil, err
		}
		end, err := f.Seek(start, seekHole)
		if err != nil {
			return nil, err
		}
		if end > to {
			end = to
		}
		if n := len(out); n > 0 && out[n-1].end == start {
			out[n-1].end = end
		} else {
			out = append(out, byteRange{start, end})
		}
		off = end
	}
	return out, nil
}

func isErrno(err error, want syscall.Errno) bool {
	pe, ok := err.(*os.PathError)
	return ok && pe.Err == want
}

// copySparse makes dst an independent copy of src that has the same holes. The copy is written
// beside dst and renamed into place, so that dst is never seen half done.
func copySparse(dst, src string, progress func(share float64)) error {
	in, err := os.Open(src)
	if err != nil {
		return err
	}
	defer in.Close()
	st, err := in.Stat()
	if err != nil {
		return err
	}
	tmp := filepath.Join(filepath.Dir(dst), "."+filepath.Base(dst)+".part")
	out, err := os.OpenFile(tmp, os.O_CREATE|os.O_TRUNC|os.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	err = fillCopy(out, in, st.Size(), progress)
	if cerr := out.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = os.Rename(tmp, dst)
	}
	if err != nil {
		_ = os.Remove(tmp)
	}
	return err
}

func fillCopy(out, in *os.File, size int64, progress func(share float64)) error {
	if _, _, e := syscall.Syscall(syscall.SYS_IOCTL, out.Fd(), ficlone, in.Fd()); e == 0 {
		return nil
	}
	if err := out.Truncate(size); err != nil {
		return err
	}
	ranges, err := dataRanges(in, 0, size)
	if err != nil {
		return err
	}
	var total, done int64
	for _, r := range ranges {
		total += r.end - r.start
	}
	const step = 64 << 20
	for _, r := range ranges {
		if _, err := in.Seek(r.start, io.SeekStart); err != nil {
			return err
		}
		if _, err := out.Seek(r.start, io.SeekStart); err != nil {
			return err
		}
		for left := r.end - r.start; left > 0; {
			n := left
			if n > step {
				n = step
			}
			// os.File hands a limited reader of another file to copy_file_range.
			if _, err := io.CopyN(out, in, n); err != nil {
				return err
			}
			left, done = left-n, done+n
			progress(float64(done) / float64(total))
		}
	}
	return nil
}

// grainHash is one grain that holds data. A file's map has them in ascending order; a grain that
// is missing there is a hole.
type grainHash struct {
	grain int64
	sum   uint64
}

type contentMap struct {
	size   int64
	grains []grainHash
}

var (
	hashSeed = maphash.MakeSeed()
	zeroHash = maphash.Bytes(hashSeed, make([]byte, grainBytes))
)

// readContentMap hashes the data of a file; the holes of a sparse file cost nothing.
func readContentMap(file string) (*contentMap, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	ranges, err := dataRanges(f, 0, st.Size())
	if err != nil {
		return nil, err
	}
	m := &contentMap{size: st.Size()}
	buf := make([]byte, grainBytes)
	next := int64(0)
	for _, r := range ranges {
		g := r.start / grainBytes
		if g < next {
			g = next
		}
		for ; g*grainBytes < r.end; g++ {
			n, err := f.ReadAt(buf, g*grainBytes)
			if err != nil && err != io.EOF {
				return nil, err
			}
			for i := n; i < grainBytes; i++ {
				buf[i] = 0
			}
			m.grains = append(m.grains, grainHash{g, maphash.Bytes(hashSeed, buf)})
		}
		next = g
	}
	return m, nil
}

// allocated lists the grains that hold data, from grain first on.
func (m *contentMap) allocated(first int64) []int64 {
	var out []int64
	for _, g := range m.grains {
		if g.grain >= first {
			out = append(out, g.grain)
		}
	}
	return out
}

// changedGrains lists the grains from first on whose content differs between two maps. Zeros that
// are stored and zeros of a hole are equal.
func changedGrains(old, now *contentMap, first int64) []int64 {
	var out []int64
	add := func(g int64) {
		if g >= first {
			out = append(out, g)
		}
	}
	i, j := 0, 0
	for i < len(old.grains) || j < len(now.grains) {
		switch {
		case j == len(now.grains) || (i < len(old.grains) && old.grains[i].grain < now.grains[j].grain):
			if old.grains[i].sum != zeroHash {
				add(old.grains[i].grain)
			}
			i++
		case i == len(old.grains) || now.grains[j].grain < old.grains[i].grain:
			if now.grains[j].sum != zeroHash {
				add(now.grains[j].grain)
			}
			j++
		default:
			if old.grains[i].sum != now.grains[j].sum {
				add(now.grains[j].grain)
			}
			i, j = i+1, j+1
		}
	}
	return out
}

// grainsToRanges joins neighbours and clips the last grain to the size of the disk.
func grainsToRanges(grains []int64, size int64) []byteRange {
	var out []byteRange
	for _, g := range grains {
		start, end := g*grainBytes, (g+1)*grainBytes
		if end > size {
			end = size
		}
		if start >= end {
			continue
		}
		if n := len(out); n > 0 && out[n-1].end == start {
			out[n-1].end = end
		} else {
			out = append(out, byteRange{start, end})
		}
	}
	return out
}

// createSparse makes a new file of that size without any data; it fails when the file exists.
func createSparse(file string, size int64) error {
	f, err := os.OpenFile(file, os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	err = f.Truncate(size)
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		_ = os.Remove(file)
		return fmt.Errorf("create %s: %w", file, err)
	}
	return nil
}
