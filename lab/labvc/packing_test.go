package main

import (
	"bytes"
	"encoding/hex"
	"math/rand"
	"testing"
)

// samples are blocks of every kind that a guest's disk has.
func samples() [][]byte {
	r := rand.New(rand.NewSource(7))
	var out [][]byte
	for _, n := range []int{16, 17, 100, 512, 4096, 65535, 65536, 65537, 1 << 20} {
		random, text, mixed := make([]byte, n), make([]byte, n), make([]byte, n)
		r.Read(random)
		for i := range text {
			text[i] = "the quick brown fox jumps over the lazy dog. "[(i*7/5)%45]
		}
		for i := 0; i < n; i += 1 + r.Intn(3000) {
			end := i + r.Intn(1500)
			if end > n {
				end = n
			}
			if r.Intn(2) == 0 {
				copy(mixed[i:end], random[i:end])
			} else {
				copy(mixed[i:end], random)
			}
		}
		out = append(out, random, text, mixed, make([]byte, n), bytes.Repeat([]byte{'A'}, n))
	}
	return out
}

func TestCompressionsGiveBackWhatTheyTook(t *testing.T) {
	for kind := uint32(zlibPacked); kind <= skipz; kind++ {
		smaller := 0
		for i, src := range samples() {
			dst := make([]byte, len(src))
			n := compress(kind, dst, src)
			if n == 0 {
				continue
			}
			smaller++
			if n >= len(src) {
				t.Errorf("kind %d sample %d: %d bytes for %d", kind, i, n, len(src))
			}
			back := bytes.Repeat([]byte{0xee}, len(src))
			if err := decompress(kind, back, dst[:n]); err != nil || !bytes.Equal(back, src) {
				t.Errorf("kind %d sample %d of %d bytes: %v", kind, i, len(src), err)
			}
		}
		if smaller < 9 {
			t.Errorf("kind %d made only %d samples smaller", kind, smaller)
		}
	}
}

func TestRandomDataStaysStored(t *testing.T) {
	src := make([]byte, 65536)
	rand.New(rand.NewSource(1)).Read(src)
	for kind := uint32(zlibPacked); kind <= skipz; kind++ {
		if n := compress(kind, make([]byte, len(src)), src); n != 0 {
			t.Errorf("kind %d: %d bytes", kind, n)
		}
	}
}

// Blocks from the protocol's description, not made by our own compressor.
func TestFastLZReadsForeignBlocks(t *testing.T) {
	level1, _ := hex.DecodeString("014141e0fd01e0ea01044141414141")
	level2, _ := hex.DecodeString("214141e0" + hex.EncodeToString(bytes.Repeat([]byte{0xff}, 256)) + "f001044141414141")
	for _, c := range []struct {
		block []byte
		size  int
	}{{level1, 512}, {level2, 65536}} {
		dst := make([]byte, c.size)
		if err := fastlzDecompress(dst, c.block); err != nil {
			t.Errorf("%d bytes: %s", c.size, err)
		} else if !bytes.Equal(dst, bytes.Repeat([]byte{'A'}, c.size)) {
			t.Errorf("%d bytes: wrong content", c.size)
		}
	}
}

func TestFastLZFarMatch(t *testing.T) {
	src := make([]byte, 120000)
	rand.New(rand.NewSource(3)).Read(src[:40000])
	copy(src[60000:100000], src[:40000]) // farther away than the short form reaches
	dst := make([]byte, len(src))
	n := compress(fastlz, dst, src)
	if n == 0 || n > 50000 {
		t.Fatalf("%d bytes", n)
	}
	back := make([]byte, len(src))
	if err := fastlzDecompress(back, dst[:n]); err != nil || !bytes.Equal(back, src) {
		t.Error("far matches are damaged", err)
	}
}

func TestDamagedBlocksAreRefused(t *testing.T) {
	r := rand.New(rand.NewSource(5))
	src := samples()[32]
	for kind := uint32(fastlz); kind <= skipz; kind++ {
		packed := make([]byte, len(src))
		n := compress(kind, packed, src)
		if n == 0 {
			t.Fatalf("kind %d: sample does not compress", kind)
		}
		if decompress(kind, make([]byte, len(src)), packed[:n/2]) == nil {
			t.Errorf("kind %d: half a block was accepted", kind)
		}
		for i := 0; i < 2000; i++ { // must not panic whatever the bytes are
			b := append([]byte(nil), packed[:n]...)
			b[r.Intn(n)] ^= byte(1 + r.Intn(255))
			_ = decompress(kind, make([]byte, len(src)), b)
		}
	}
}

func TestSkipZExamples(t *testing.T) {
	zero := make([]byte, 512)
	abc := make([]byte, 512)
	copy(abc[137:], "ABC")
	for _, c := range []struct {
		src  []byte
		want string
	}{{zero, "0002000000000000"}, {abc, "00020000000000008900000003000000414243"}} {
		dst := make([]byte, 512)
		n := compress(skipz, dst, c.src)
		if got := hex.EncodeToString(dst[:n]); got != c.want {
			t.Errorf("%s instead of %s", got, c.want)
		}
	}
}
