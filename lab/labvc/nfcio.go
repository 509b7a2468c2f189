package main

// NFC reads and writes: fragments, compression, and the ways in which a host may misbehave.

import (
	"bytes"
	"compress/zlib"
	"fmt"
	"io"
	"math/rand"
	"sync"
	"time"
)

const (
	ioBytes = 44

	stored      = 0
	zlibPacked  = 1
	fastlz      = 2
	skipz       = 3
	zlibMinGain = 16
)

// ioRequest is the 44-byte payload of a read or of a write fragment.
type ioRequest struct {
	m           *aioMessage
	f           *nfcFile
	compression uint32
	offset      int64 // on the disk
	total       int64
	inside      int64 // fragment's place in the request
	length      int64 // fragment's uncompressed length
	wire        uint32
}

func (s *nfcSession) io(m *aioMessage) error {
	if !m.need(ioBytes) {
		return fmt.Errorf("IO of %d bytes", len(m.payload))
	}
	p := m.payload
	r := &ioRequest{m: m, f: s.files[le.Uint64(p)], compression: le.Uint32(p[12:]), offset: int64(le.Uint64(p[16:])),
		total: int64(le.Uint32(p[24:])), inside: int64(le.Uint32(p[28:])), length: int64(le.Uint32(p[32:])), wire: le.Uint32(p[36:])}
	if le.Uint32(p[8:]) == 1 {
		return s.read(r)
	}
	return s.writeFragment(r)
}

func (s *nfcSession) read(r *ioRequest) error {
	h := s.h
	h.l.stats.host(h.name, func(t *hostStats) { t.ReadRequests++ })
	switch {
	case r.f == nil:
		return s.fail(r.m, 3, "NfcAioProcessIOMsg: invalid handle")
	case r.total <= 0 || r.total > maxReadBytes || r.offset < 0 || r.offset%512 != 0 || r.total%512 != 0:
		return s.fail(r.m, 3, "NfcAioProcessIOMsg: misaligned or too large")
	case r.offset+r.total > r.f.capacity:
		return s.fail(r.m, 3, "NfcAioProcessIOMsg: read past the end of the disk")
	case r.compression > skipz:
		return s.fail(r.m, 6, "NfcAioProcessIOMsg: unknown compression")
	}
	byPath := func(f *fault) bool { return f.matchesPath(h.name, r.f.path) }
	if h.l.faults.take("nfc-read-error", byPath) != nil {
		return s.fail(r.m, 7, "NfcAioProcessIOMsg: Input/output error")
	}
	s.enter()
	job := func() {
		defer s.leave()
		if f := h.l.faults.take("nfc-delay", byPath); f != nil {
			time.Sleep(f.delay())
		}
		if err := s.answerRead(r); err != nil {
			_ = s.conn.Close() // the reading side notices and ends the session
		}
	}
	if f := h.l.faults.take("nfc-newest-first", byPath); f != nil || len(s.held) > 0 {
		s.hold(f, job)
		return nil
	}
	s.jobs <- job
	return nil
}

func (s *nfcSession) enter() {
	s.pending.Add(1)
	s.flight.Lock()
	s.inFlight++
	n := s.inFlight
	s.flight.Unlock()
	s.h.l.stats.host(s.h.name, func(t *hostStats) {
		if n > t.MaxInFlight {
			t.MaxInFlight = n
		}
	})
}

func (s *nfcSession) leave() {
	s.flight.Lock()
	s.inFlight--
	s.flight.Unlock()
	s.pending.Done()
}

// hold keeps reads back until enough have come, or none comes any more, and answers the newest first.
func (s *nfcSession) hold(f *fault, job func()) {
	s.flight.Lock()
	defer s.flight.Unlock()
	s.held = append(s.held, job)
	want := 4
	if f != nil && f.Requests > 0 {
		want = f.Requests
	}
	if len(s.held) >= want {
		s.flush()
		return
	}
	if len(s.held) == 1 {
		time.AfterFunc(100*time.Millisecond, func() {
			s.flight.Lock()
			defer s.flight.Unlock()
			s.flush()
		})
	}
}

func (s *nfcSession) flush() {
	held := s.held
	s.held = nil
	go func() {
		for i := len(held) - 1; i >= 0; i-- {
			held[i]()
		}
	}()
}

type fragment struct{ inside, length int64 }

// fragments cuts a request into what fits a buffer, or into odd pieces in odd order when asked.
func (s *nfcSession) fragments(r *ioRequest) []fragment {
	byPath := func(f *fault) bool { return f.matchesPath(s.h.name, r.f.path) }
	odd := s.h.l.faults.take("nfc-odd-fragments", byPath) != nil
	var out []fragment
	for done := int64(0); done < r.total; {
		n := int64(s.buffer)
		if odd {
			n = 512 * (1 + rand.Int63n(n/512))
		}
		if n > r.total-done {
			n = r.total - done
		}
		out = append(out, fragment{done, n})
		done += n
	}
	if s.h.l.faults.take("nfc-shuffle", byPath) != nil {
		rand.Shuffle(len(out), func(i, j int) { out[i], out[j] = out[j], out[i] })
	}
	return out
}

func (s *nfcSession) answerRead(r *ioRequest) error {
	buf := s.buf()
	defer s.pool.Put(buf) //nolint:staticcheck // a slice header is small
	var packed []byte
	if r.compression != stored {
		packed = s.buf()
		defer s.pool.Put(packed) //nolint:staticcheck
	}
	for _, g := range s.fragments(r) {
		data := buf[aioHeadBytes+ioBytes:][:g.length]
		if err := r.f.readFull(data, r.offset+g.inside); err != nil {
			return s.fail(r.m, 7, "NfcAioProcessIOMsg: "+err.Error())
		}
		out, compression := buf[:aioHeadBytes+ioBytes+int(g.length)], uint32(stored)
		if r.compression != stored {
			if n := compress(r.compression, packed[aioHeadBytes+ioBytes:], data); n > 0 {
				out, compression = packed[:aioHeadBytes+ioBytes+n], r.compression
			}
		}
		putHead(out, aioIO, ioBytes, r.m.opID)
		p := out[aioHeadBytes:][:ioBytes]
		for i := range p {
			p[i] = 0
		}
		le.PutUint32(p[8:], 1)
		le.PutUint32(p[12:], compression)
		le.PutUint64(p[16:], uint64(r.offset))
		le.PutUint32(p[24:], uint32(r.total))
		le.PutUint32(p[28:], uint32(g.inside))
		le.PutUint32(p[32:], uint32(g.length))
		le.PutUint32(p[36:], uint32(len(out)-aioHeadBytes-ioBytes))
		if err := s.sendFragment(r, out, g.length); err != nil {
			return err
		}
	}
	s.h.l.stats.host(s.h.name, func(t *hostStats) { t.BytesRead += r.total })
	s.h.l.stats.disk(r.f.path, r.total, 0)
	return nil
}

func (s *nfcSession) buf() []byte {
	b := s.pool.Get().([]byte)
	if want := aioHeadBytes + ioBytes + s.buffer; len(b) < want {
		b = make([]byte, want)
	}
	return b
}

// sendFragment sends one fragment, or what an injected fault makes of it.
func (s *nfcSession) sendFragment(r *ioRequest, out []byte, length int64) error {
	byPath := func(f *fault) bool { return f.matchesPath(s.h.name, r.f.path) }
	packed := le.Uint32(out[aioHeadBytes+12:]) == zlibPacked
	bad := s.h.l.faults.take("nfc-bad-fragment", func(f *fault) bool { return byPath(f) && (f.Variant != "truncated-zlib" || packed) })
	if bad != nil {
		p := out[aioHeadBytes:]
		switch bad.Variant {
		case "duplicate":
			if err := s.write(out); err != nil {
				return err
			}
		case "overrun":
			le.PutUint32(p[28:], uint32(r.total))
		case "wrong-opid":
			le.PutUint32(out[12:], r.m.opID+100000)
		case "bad-magic":
			le.PutUint32(out, 0xdeadbeef)
		case "status":
			le.PutUint64(p, 7)
		case "truncated-zlib":
			n := (len(out) - aioHeadBytes - ioBytes) / 2
			out = out[:aioHeadBytes+ioBytes+n]
			le.PutUint32(p[36:], uint32(n))
		}
	}
	if s.cutNow(byPath, length) {
		s.wmu.Lock()
		defer s.wmu.Unlock()
		if !s.cut {
			s.cut = true
			_, _ = s.conn.Write(out[:len(out)/2])
		}
		return errCut
	}
	return s.write(out)
}

// cutNow says whether this fragment reaches the byte at which the connection shall break.
func (s *nfcSession) cutNow(match func(*fault) bool, length int64) bool {
	s.flight.Lock()
	s.sent += length
	sent := s.sent
	s.flight.Unlock()
	return s.h.l.faults.take("nfc-cut", func(f *fault) bool { return match(f) && sent > f.AfterBytes }) != nil
}

var zlibWriters = sync.Pool{New: func() interface{} {
	w, _ := zlib.NewWriterLevel(io.Discard, zlib.BestSpeed)
	return w
}}

// fixedWriter refuses what does not fit, so that an incompressible block costs no more than itself.
type fixedWriter struct {
	b []byte
	n int
}

func (w *fixedWriter) Write(p []byte) (int, error) {
	if w.n+len(p) > len(w.b) {
		return 0, io.ErrShortBuffer
	}
	w.n += copy(w.b[w.n:], p)
	return len(p), nil
}

// compress packs src into dst and answers the packed length, 0 when it would not be smaller.
func compress(kind uint32, dst, src []byte) int {
	var out []byte
	switch kind {
	case zlibPacked:
		w := &fixedWriter{b: dst[:len(src)-zlibMinGain]}
		z := zlibWriters.Get().(*zlib.Writer)
		defer zlibWriters.Put(z)
		z.Reset(w)
		_, err := z.Write(src)
		if err == nil {
			err = z.Close()
		}
		if err != nil {
			return 0
		}
		return w.n
	case fastlz:
		out = fastlzCompress(dst[:0], src)
	case skipz:
		out = skipzCompress(dst[:0], src)
	}
	return copy(dst, out)
}

func decompress(kind uint32, dst, src []byte) error {
	switch kind {
	case stored:
		if len(src) != len(dst) {
			return fmt.Errorf("stored fragment of %d bytes for %d", len(src), len(dst))
		}
		copy(dst, src)
		return nil
	case zlibPacked:
		z, err := zlib.NewReader(bytes.NewReader(src))
		if err != nil {
			return err
		}
		if _, err := io.ReadFull(z, dst); err != nil {
			return err
		}
		if n, _ := z.Read(make([]byte, 1)); n != 0 {
			return fmt.Errorf("zlib fragment longer than %d bytes", len(dst))
		}
		return nil
	case fastlz:
		return fastlzDecompress(dst, src)
	case skipz:
		return skipzDecompress(dst, src)
	}
	return fmt.Errorf("unknown compression %d", kind)
}

// writeState collects the fragments of one write.
type writeState struct {
	done   int64
	failed string
}

func (s *nfcSession) writeFragment(r *ioRequest) error {
	if int64(r.wire) > int64(s.buffer)+4096 {
		return fmt.Errorf("write fragment of %d bytes with buffers of %d", r.wire, s.buffer)
	}
	buf := s.buf()
	defer s.pool.Put(buf) //nolint:staticcheck
	if len(buf) < int(r.wire) {
		buf = make([]byte, r.wire)
	}
	wire := buf[:r.wire]
	if _, err := io.ReadFull(s.in, wire); err != nil {
		return err
	}
	w := s.writes[r.m.opID]
	if w == nil {
		w = &writeState{}
		s.writes[r.m.opID] = w
	}
	if w.failed == "" {
		w.failed = s.store(r, wire)
	}
	w.done += r.length
	if r.f != nil && s.cutNow(func(f *fault) bool { return f.matchesPath(s.h.name, r.f.path) }, r.length) {
		return errCut
	}
	if w.done < r.total && r.length > 0 {
		return nil
	}
	delete(s.writes, r.m.opID)
	if w.failed != "" {
		return s.fail(r.m, 7, "NfcAioProcessIOMsg: "+w.failed)
	}
	s.h.l.stats.host(s.h.name, func(t *hostStats) { t.WriteRequests++; t.BytesWritten += r.total })
	s.h.l.stats.disk(r.f.path, 0, r.total)
	p := make([]byte, len(r.m.payload))
	le.PutUint64(p[16:], uint64(r.offset))
	for _, at := range []int{24, 32, 36} {
		le.PutUint32(p[at:], uint32(r.total))
	}
	return s.reply(r.m, p, nil)
}

// store writes one fragment into the file and answers why not.
func (s *nfcSession) store(r *ioRequest, wire []byte) string {
	switch {
	case r.f == nil:
		return "invalid handle"
	case !r.f.writable:
		return "disk is open read-only"
	case r.length <= 0 || r.length > int64(s.buffer) || r.inside+r.length > r.total || (r.offset|r.total|r.inside|r.length)%512 != 0:
		return "bad fragment"
	case r.offset < 0 || r.offset+r.total > r.f.capacity:
		return "write past the end of the disk"
	case s.h.l.faults.take("nfc-write-error", func(f *fault) bool { return f.matchesPath(s.h.name, r.f.path) }) != nil:
		return "No space left on device"
	}
	data := wire
	if r.compression != stored {
		b := s.buf()
		defer s.pool.Put(b) //nolint:staticcheck
		data = b[:r.length]
	}
	if r.compression != stored || int64(len(wire)) != r.length {
		if err := decompress(r.compression, data, wire); err != nil {
			return err.Error()
		}
	}
	if _, err := r.f.file.WriteAt(data, r.offset+r.inside); err != nil {
		return err.Error()
	}
	return ""
}
