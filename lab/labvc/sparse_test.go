package main

import (
	"bytes"
	"math/rand"
	"os"
	"path/filepath"
	"reflect"
	"testing"
)

func put(t *testing.T, file string, off int64, b []byte) {
	t.Helper()
	f, err := os.OpenFile(file, os.O_RDWR|os.O_CREATE, 0o600)
	if err == nil {
		_, err = f.WriteAt(b, off)
	}
	if err != nil {
		t.Fatal(err)
	}
	_ = f.Close()
}

func sparse(t *testing.T, size int64) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "disk")
	if err := createSparse(file, size); err != nil {
		t.Fatal(err)
	}
	return file
}

func contentOf(t *testing.T, file string) *contentMap {
	t.Helper()
	m, err := readContentMap(file)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func TestMapOfAHugeHoleIsEmpty(t *testing.T) {
	file := sparse(t, 2<<40)
	put(t, file, 1<<40+5, []byte("x"))
	m := contentOf(t, file)
	if len(m.grains) != 1 || m.grains[0].grain != (1<<40)/grainBytes {
		t.Errorf("%v", m.grains)
	}
}

func TestStoredZerosEqualAHole(t *testing.T) {
	file := sparse(t, 1<<20)
	before := contentOf(t, file)
	put(t, file, 0, make([]byte, 200000))
	after := contentOf(t, file)
	if len(after.grains) == 0 {
		t.Fatal("zeros were not stored")
	}
	if c := changedGrains(before, after, 0); len(c) != 0 {
		t.Errorf("changed %v", c)
	}
	if c := changedGrains(after, before, 0); len(c) != 0 {
		t.Errorf("changed %v", c)
	}
}

func TestLastGrainIsClipped(t *testing.T) {
	file := sparse(t, grainBytes+512)
	before := contentOf(t, file)
	put(t, file, grainBytes, []byte("tail"))
	got := grainsToRanges(changedGrains(before, contentOf(t, file), 0), grainBytes+512)
	if !reflect.DeepEqual(got, []byteRange{{grainBytes, grainBytes + 512}}) {
		t.Errorf("%v", got)
	}
}

// What is reported must be what a byte by byte comparison finds, for any series of writes.
func TestChangesAreThoseOfTheBytes(t *testing.T) {
	r := rand.New(rand.NewSource(11))
	const size = 4 << 20
	file := sparse(t, size)
	for round := 0; round < 60; round++ {
		before, old := contentOf(t, file), readAll(t, file)
		for i := r.Intn(6); i > 0; i-- {
			b := make([]byte, 1+r.Intn(100000))
			if r.Intn(3) > 0 {
				r.Read(b)
			}
			put(t, file, r.Int63n(size-int64(len(b))), b)
		}
		now := readAll(t, file)
		var want []int64
		for g := int64(0); g*grainBytes < size; g++ {
			if !bytes.Equal(old[g*grainBytes:(g+1)*grainBytes], now[g*grainBytes:(g+1)*grainBytes]) {
				want = append(want, g)
			}
		}
		if got := changedGrains(before, contentOf(t, file), 0); !reflect.DeepEqual(got, want) {
			t.Fatalf("round %d: %v instead of %v", round, got, want)
		}
	}
}

func readAll(t *testing.T, file string) []byte {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestCopyKeepsBytesAndHoles(t *testing.T) {
	file := sparse(t, 64<<20)
	for _, off := range []int64{0, 1<<20 + 4096, 50 << 20} {
		put(t, file, off, bytes.Repeat([]byte{1}, 70000))
	}
	dst := filepath.Join(t.TempDir(), "copy")
	last := 0.0
	if err := copySparse(dst, file, func(s float64) { last = s }); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(readAll(t, dst), readAll(t, file)) {
		t.Error("the copy differs")
	}
	_, taken := sizes(dst)
	if taken > 1<<20 {
		t.Errorf("the copy takes %d bytes", taken)
	}
	if last != 0 && last != 1 {
		t.Errorf("progress ended at %v", last)
	}
}

func TestAllocationBitmap(t *testing.T) {
	const chunk = 64 << 10
	for _, c := range []struct {
		ranges       []byteRange
		start, count int64
		want         []byte
	}{
		{nil, 0, 16, []byte{0, 0, 0, 0}},
		{[]byteRange{{0, 4 * chunk}, {15 * chunk, 15*chunk + 1}}, 0, 16, []byte{0x0f, 0x80, 0, 0}},
		{[]byteRange{{chunk - 1, chunk + 1}}, 0, 33, []byte{3, 0, 0, 0, 0, 0, 0, 0}},
		{[]byteRange{{0, 100 * chunk}}, 8 * chunk, 9, []byte{0xff, 1, 0, 0}},
		{[]byteRange{{0, 8 * chunk}, {17 * chunk, 18 * chunk}}, 8 * chunk, 9, []byte{0, 0, 0, 0}},
		{[]byteRange{{7 * chunk, 9*chunk - 10}}, 8 * chunk, 9, []byte{1, 0, 0, 0}},
	} {
		if got := allocationBitmap(c.ranges, c.start, chunk, c.count); !bytes.Equal(got, c.want) {
			t.Errorf("%v from %d: %x instead of %x", c.ranges, c.start, got, c.want)
		}
	}
}
