package main

// SkipZ: a fragment's runs of data without the zeros between them.

import (
	"encoding/binary"
	"errors"
)

var errSkipZ = errors.New("damaged SkipZ fragment")

// A gap of zeros shorter than a run's head is cheaper inside the run.
const skipzGap = 16

// skipzCompress answers nil when nothing is won.
func skipzCompress(dst, src []byte) []byte {
	out := append(dst[:0], 0, 0, 0, 0, 0, 0, 0, 0)
	binary.LittleEndian.PutUint32(out, uint32(len(src)))
	for i := 0; i < len(src); {
		i = skipZeros(src, i)
		if i >= len(src) {
			break
		}
		end := i + 1
		for end < len(src) {
			if src[end] != 0 {
				end++
				continue
			}
			z := skipZeros(src, end)
			if z-end >= skipzGap || z == len(src) {
				break
			}
			end = z
		}
		if len(out)+8+end-i >= len(src) {
			return nil
		}
		var head [8]byte
		binary.LittleEndian.PutUint32(head[:], uint32(i))
		binary.LittleEndian.PutUint32(head[4:], uint32(end-i))
		out = append(append(out, head[:]...), src[i:end]...)
		i = end
	}
	if len(out) >= len(src) {
		return nil
	}
	return out
}

func skipZeros(b []byte, i int) int {
	for i+8 <= len(b) && binary.LittleEndian.Uint64(b[i:]) == 0 {
		i += 8
	}
	for i < len(b) && b[i] == 0 {
		i++
	}
	return i
}

func skipzDecompress(dst, src []byte) error {
	if len(src) < 8 || int(binary.LittleEndian.Uint32(src)) != len(dst) {
		return errSkipZ
	}
	for i := range dst {
		dst[i] = 0
	}
	src = src[8:]
	for len(src) > 0 {
		if len(src) < 8 {
			return errSkipZ
		}
		off, n := uint64(binary.LittleEndian.Uint32(src)), uint64(binary.LittleEndian.Uint32(src[4:]))
		src = src[8:]
		if n > uint64(len(src)) || off+n > uint64(len(dst)) {
			return errSkipZ
		}
		copy(dst[off:], src[:n])
		src = src[n:]
	}
	return nil
}
