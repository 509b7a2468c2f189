package main

// FastLZ blocks as NFC carries them: bare, without a length in front.

import "errors"

var errFastLZ = errors.New("damaged FastLZ block")

const (
	fastlzLevel2Bytes  = 64 << 10 // shorter blocks are level 1
	fastlzL1Distance   = 1 << 13  // 5 + 8 bits
	fastlzFarDistance  = 31*256 + 255
	fastlzL2Distance   = fastlzFarDistance + 1<<16
	fastlzHashBits     = 13
	fastlzMinInput     = 16
	fastlzTailLiterals = 5 // the end is always literals, so that a block cannot end in a match
)

// fastlzDecompress unpacks src into dst and wants to fill dst exactly.
func fastlzDecompress(dst, src []byte) error {
	if len(src) == 0 {
		return errFastLZ
	}
	level2 := src[0]>>5 == 1
	if src[0]>>5 > 1 {
		return errFastLZ
	}
	ctrl := src[0] & 31
	in, out := 1, 0
	for {
		if ctrl < 32 {
			n := int(ctrl) + 1
			if in+n > len(src) || out+n > len(dst) {
				return errFastLZ
			}
			copy(dst[out:], src[in:in+n])
			in, out = in+n, out+n
		} else {
			var length, distance int
			var ok bool
			length, distance, in, ok = fastlzMatch(src, in, ctrl, level2)
			from := out - distance
			if !ok || from < 0 || out+length > len(dst) {
				return errFastLZ
			}
			for i := 0; i < length; i++ {
				dst[out+i] = dst[from+i]
			}
			out += length
		}
		if in >= len(src) {
			break
		}
		ctrl = src[in]
		in++
	}
	if out != len(dst) {
		return errFastLZ
	}
	return nil
}

func fastlzMatch(src []byte, in int, ctrl byte, level2 bool) (length, distance, next int, ok bool) {
	length = int(ctrl>>5) + 2
	distance = int(ctrl&31) << 8
	if ctrl>>5 == 7 {
		for {
			if in >= len(src) {
				return 0, 0, 0, false
			}
			b := src[in]
			in++
			length += int(b)
			if !level2 || b != 255 {
				break
			}
		}
	}
	if in >= len(src) {
		return 0, 0, 0, false
	}
	distance += int(src[in])
	in++
	if level2 && distance == fastlzFarDistance {
		if in+2 > len(src) {
			return 0, 0, 0, false
		}
		distance += int(src[in])<<8 | int(src[in+1])
		in += 2
	}
	return length, distance + 1, in, true
}

// fastlzCompress packs src into dst (reused when it is large enough). It answers nil when the
// block would not become smaller.
func fastlzCompress(dst, src []byte) []byte {
	if len(src) < fastlzMinInput {
		return nil
	}
	level2 := len(src) >= fastlzLevel2Bytes
	limit := len(src) - 1
	out := dst[:0]
	var table [1 << fastlzHashBits]int32
	hash := func(i int) uint32 {
		v := uint32(src[i]) | uint32(src[i+1])<<8 | uint32(src[i+2])<<16
		return v * 2654435761 >> (32 - fastlzHashBits)
	}
	maxDistance := fastlzL1Distance
	if level2 {
		maxDistance = fastlzL2Distance
	}
	literal := 0
	i := 2 // a block begins with a literal run
	for i+fastlzTailLiterals+3 < len(src) {
		if len(out) > limit {
			return nil
		}
		h := hash(i)
		from := int(table[h]) - 1
		table[h] = int32(i) + 1
		if from < 0 || i-from > maxDistance || src[from] != src[i] || src[from+1] != src[i+1] || src[from+2] != src[i+2] {
			i++
			continue
		}
		length := 3
		for end := len(src) - fastlzTailLiterals; i+length < end && src[from+length] == src[i+length]; {
			length++
		}
		if level2 && i-from > fastlzFarDistance && length < 5 {
			i++
			continue
		}
		out = fastlzLiterals(out, src[literal:i])
		out = fastlzEmit(out, i-from-1, length, level2)
		i += length
		literal = i
	}
	out = fastlzLiterals(out, src[literal:])
	if level2 {
		out[0] |= 1 << 5
	}
	if len(out) > limit {
		return nil
	}
	return out
}

func fastlzLiterals(out, run []byte) []byte {
	for len(run) > 0 {
		n := len(run)
		if n > 32 {
			n = 32
		}
		out = append(out, byte(n-1))
		out = append(out, run[:n]...)
		run = run[n:]
	}
	return out
}

// fastlzEmit writes one match; distance is the number that is stored, one less than the real one.
func fastlzEmit(out []byte, distance, length int, level2 bool) []byte {
	if !level2 {
		for length > 9+255 {
			out = append(out, 7<<5|byte(distance>>8), 253, byte(distance))
			length -= 9 + 253
		}
	}
	far := level2 && distance >= fastlzFarDistance
	high, low := byte(distance>>8), byte(distance)
	if far {
		high, low = 31, 255
	}
	if length < 9 {
		out = append(out, byte(length-2)<<5|high)
	} else {
		out = append(out, 7<<5|high)
		rest := length - 9
		for level2 && rest >= 255 {
			out = append(out, 255)
			rest -= 255
		}
		out = append(out, byte(rest))
	}
	out = append(out, low)
	if far {
		d := distance - fastlzFarDistance
		out = append(out, byte(d>>8), byte(d))
	}
	return out
}
