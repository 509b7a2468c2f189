package main

// The second half of an NFC connection: classic messages, then the AIO loop.

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"time"
)

const (
	classicBytes = 264

	classicComplete = 4
	classicParams   = 33
	classicParamsOK = 36
	classicTag      = 43
	classicVersion  = 51
	classicAIO      = 52
	classicConn     = 54
	classicFeatures = 55

	aioMagic         = 0xA100DA7A
	aioHeadBytes     = 16
	aioError         = 1
	aioOpenSession   = 2
	aioCloseSession  = 3
	aioOpenFile      = 4
	aioCloseFile     = 5
	aioIO            = 7
	aioSockOpts      = 9
	aioDDBGet        = 11
	aioAllocated     = 13
	aioResPool       = 22
	maxPayloadBytes  = 4096
	maxPathBytes     = 4096
	defaultBuffer    = 64 << 10
	maxBuffer        = 2 << 20
	maxReadBytes     = 32 << 20
	readersPerStream = 4
)

var le = binary.LittleEndian

// messageReader is the carrier's reading side. begin is called before each message: a host that
// reads one message per TLS record waits there for another record, even when it holds more bytes.
type messageReader interface {
	io.Reader
	begin() error
}

type freeReader struct{ *bufio.Reader }

func (freeReader) begin() error { return nil }

// strictReader imitates a host that polls the socket before every message and so does not notice
// what it has already decrypted.
type strictReader struct {
	conn  net.Conn
	rest  []byte
	first bool
	stall func()
}

func (r *strictReader) begin() error {
	if len(r.rest) > 0 {
		r.stall()
	}
	return r.more()
}

func (r *strictReader) more() error {
	buf := make([]byte, 16<<10)
	n, err := r.conn.Read(buf)
	r.rest = append(r.rest, buf[:n]...)
	return err
}

func (r *strictReader) Read(p []byte) (int, error) {
	for len(r.rest) == 0 {
		if err := r.more(); err != nil {
			return 0, err
		}
	}
	n := copy(p, r.rest)
	r.rest = r.rest[n:]
	return n, nil
}

type nfcSession struct {
	h      *esxHost
	a      *authd
	in     messageReader
	conn   net.Conn
	wmu    sync.Mutex // one message at a time on the wire
	buffer int
	pool   sync.Pool
	files  map[uint64]*nfcFile
	nextFH uint64

	jobs     chan func()
	pending  sync.WaitGroup
	flight   sync.Mutex
	inFlight int

	sent, received int64 // bytes of disk data, for nfc-cut
	cut            bool
	held           []func() // reads kept back by nfc-newest-first
	writes         map[uint32]*writeState
}

var errCut = errors.New("connection cut on request")

func newNFCSession(h *esxHost, a *authd, conn net.Conn, secure bool) *nfcSession {
	s := &nfcSession{h: h, a: a, conn: conn, buffer: defaultBuffer, files: map[uint64]*nfcFile{},
		nextFH: 0x2a1f, jobs: make(chan func(), 64), writes: map[uint32]*writeState{}}
	s.pool.New = func() interface{} { return make([]byte, aioHeadBytes+ioBytes+s.buffer) }
	s.in = freeReader{bufio.NewReaderSize(conn, 64<<10)}
	if secure && h.due("nfc-strict-records") != nil {
		s.in = &strictReader{conn: conn, stall: func() {
			h.l.stats.host(h.name, func(t *hostStats) { t.RecordStalls++ })
		}}
	}
	return s
}

func (s *nfcSession) run() error {
	defer s.closeFiles()
	if err := s.handshake(); err != nil {
		return fmt.Errorf("classic messages: %w", err)
	}
	for i := 0; i < readersPerStream; i++ {
		go func() {
			for j := range s.jobs {
				j()
			}
		}()
	}
	defer close(s.jobs)
	defer s.pending.Wait()
	for {
		done, err := s.next()
		if done || err != nil {
			// Unblock workers that still write to a client that does not read.
			_ = s.conn.SetWriteDeadline(time.Now().Add(5 * time.Second))
			return err
		}
	}
}

func (s *nfcSession) readClassic() (uint32, []byte, error) {
	if err := s.in.begin(); err != nil {
		return 0, nil, err
	}
	m := make([]byte, classicBytes)
	if _, err := io.ReadFull(s.in, m); err != nil {
		return 0, nil, err
	}
	return le.Uint32(m), m, nil
}

func (s *nfcSession) sendClassic(kind uint32, fill func(m []byte)) error {
	m := make([]byte, classicBytes)
	le.PutUint32(m, kind)
	if fill != nil {
		fill(m)
	}
	_, err := s.conn.Write(m)
	return err
}

func (s *nfcSession) expect(want uint32) ([]byte, error) {
	kind, m, err := s.readClassic()
	if err != nil {
		return nil, err
	}
	if kind != want {
		_ = s.sendClassic(classicComplete, nil)
		return nil, fmt.Errorf("message %d where %d belongs", kind, want)
	}
	return m, nil
}

func (s *nfcSession) handshake() error {
	kind, m, err := s.readClassic()
	if err != nil {
		return err
	}
	if kind == classicTag {
		// The tag of THUMBPRINT_SHA2 comes again here; one that does not fit was never a good one.
		if s.h.due("nfc-refuse-43") != nil || !bytes.HasPrefix(m[4:], []byte(s.a.tag)) {
			_ = s.sendClassic(classicComplete, nil)
			return errors.New("message 43 refused")
		}
		if kind, _, err = s.readClassic(); err != nil {
			return err
		}
	}
	if kind != classicParams {
		_ = s.sendClassic(classicComplete, nil)
		return fmt.Errorf("message %d where %d belongs", kind, classicParams)
	}
	params := func() error { return s.sendClassic(classicParamsOK, func(m []byte) { le.PutUint32(m[16:], 1) }) }
	late := s.h.due("nfc-36-after-51") != nil
	if !late {
		if err := params(); err != nil {
			return err
		}
	}
	if m, err = s.expect(classicVersion); err != nil {
		return err
	}
	if v := le.Uint32(m[4:]); v < 3 {
		_ = s.sendClassic(classicComplete, nil)
		return fmt.Errorf("client of version %d", v)
	}
	if late {
		if err := params(); err != nil {
			return err
		}
	}
	if err := s.sendClassic(classicVersion, func(m []byte) { le.PutUint32(m[4:], nfcLibVersion) }); err != nil {
		return err
	}
	if m, err = s.expect(classicConn); err != nil {
		return err
	}
	n := int64(le.Uint32(m[4:])) + int64(le.Uint32(m[8:]))
	if n > maxPayloadBytes {
		return fmt.Errorf("connection data of %d bytes", n)
	}
	if _, err = io.CopyN(io.Discard, s.in, n); err != nil {
		return err
	}
	if _, err = s.expect(classicFeatures); err != nil {
		return err
	}
	if _, err = s.expect(classicAIO); err != nil {
		return err
	}
	return s.sendClassic(classicAIO, nil)
}

// aioMessage is one request's head and payload; extra bytes are read by whoever knows their length.
type aioMessage struct {
	kind, opID uint32
	payload    []byte
}

func (s *nfcSession) readMessage() (*aioMessage, error) {
	if err := s.in.begin(); err != nil {
		return nil, err
	}
	var head [aioHeadBytes]byte
	if _, err := io.ReadFull(s.in, head[:4]); err != nil {
		return nil, err
	}
	if magic := le.Uint32(head[:]); magic == classicComplete {
		return nil, io.EOF // the client's last, classic message
	} else if magic != aioMagic {
		return nil, fmt.Errorf("magic %#x", magic)
	}
	if _, err := io.ReadFull(s.in, head[4:]); err != nil {
		return nil, err
	}
	size := le.Uint32(head[8:])
	if size > maxPayloadBytes {
		return nil, fmt.Errorf("payload of %d bytes", size)
	}
	m := &aioMessage{kind: le.Uint32(head[4:]), opID: le.Uint32(head[12:]), payload: make([]byte, size)}
	_, err := io.ReadFull(s.in, m.payload)
	return m, err
}

// extra reads bytes that follow the payload.
func (s *nfcSession) extra(n uint32, max int) ([]byte, error) {
	if int64(n) > int64(max) {
		return nil, fmt.Errorf("%d bytes after the payload", n)
	}
	b := make([]byte, n)
	_, err := io.ReadFull(s.in, b)
	return b, err
}

func (s *nfcSession) reply(m *aioMessage, payload []byte, extra []byte) error {
	b := make([]byte, aioHeadBytes, aioHeadBytes+len(payload)+len(extra))
	putHead(b, m.kind, uint32(len(payload)), m.opID)
	b = append(append(b, payload...), extra...)
	return s.write(b)
}

func putHead(b []byte, kind, size, opID uint32) {
	le.PutUint32(b, aioMagic)
	le.PutUint32(b[4:], kind)
	le.PutUint32(b[8:], size)
	le.PutUint32(b[12:], opID)
}

func (s *nfcSession) write(b []byte) error {
	s.wmu.Lock()
	defer s.wmu.Unlock()
	if s.cut {
		return errCut
	}
	_, err := s.conn.Write(b)
	s.h.l.stats.host(s.h.name, func(t *hostStats) { t.WireBytesSent += int64(len(b)) })
	return err
}

func (s *nfcSession) fail(m *aioMessage, code uint64, text string) error {
	p := make([]byte, 16)
	le.PutUint64(p, code)
	le.PutUint32(p[12:], uint32(len(text)))
	return s.reply(&aioMessage{kind: aioError, opID: m.opID}, p, []byte(text))
}

// need makes short payloads of a sloppy client safe to read.
func (m *aioMessage) need(n int) bool { return len(m.payload) >= n }

func (s *nfcSession) next() (done bool, err error) {
	m, err := s.readMessage()
	if err == io.EOF {
		return true, nil
	}
	if err != nil {
		return false, err
	}
	switch m.kind {
	case aioOpenSession:
		return false, s.openSession(m)
	case aioSockOpts:
		p := make([]byte, len(m.payload))
		if len(p) >= 12 {
			le.PutUint32(p, 1675000)
			le.PutUint32(p[4:], 1675000)
			le.PutUint32(p[8:], 1)
		}
		return false, s.reply(m, p, nil)
	case aioResPool:
		return false, s.reply(m, m.payload, nil)
	case aioOpenFile:
		return false, s.openFile(m)
	case aioDDBGet:
		return false, s.ddbGet(m)
	case aioAllocated:
		return false, s.allocated(m)
	case aioIO:
		return false, s.io(m)
	case aioCloseFile:
		return false, s.closeFile(m)
	case aioCloseSession:
		s.pending.Wait()
		return false, s.reply(m, make([]byte, len(m.payload)), nil)
	}
	return false, s.fail(m, 6, fmt.Sprintf("NfcAioProcessMsg: unknown message type %d", m.kind))
}

func (s *nfcSession) openSession(m *aioMessage) error {
	size := int64(defaultBuffer)
	if m.need(8) && le.Uint32(m.payload[4:]) != 0 {
		size = int64(le.Uint32(m.payload[4:]))
	}
	limit := int64(maxBuffer)
	f := s.h.l.faults.take("nfc-small-buffers", func(f *fault) bool { return f.matchesPath(s.h.name, "") && size > f.AboveBytes })
	if f != nil {
		limit = f.AboveBytes
	}
	if size > limit {
		return s.fail(m, 5, fmt.Sprintf("NfcAioInitSession: failed to allocate the requested %d bytes", size))
	}
	s.buffer = int(size)
	return s.reply(m, make([]byte, len(m.payload)), nil)
}

func (s *nfcSession) closeFiles() {
	for fh := range s.files {
		s.release(fh)
	}
}

func (s *nfcSession) release(fh uint64) {
	f := s.files[fh]
	delete(s.files, fh)
	_ = f.file.Close()
	l := s.h.l
	l.mu.Lock()
	if l.open[f.flat]--; l.open[f.flat] <= 0 {
		delete(l.open, f.flat)
	}
	l.mu.Unlock()
}

func (s *nfcSession) closeFile(m *aioMessage) error {
	s.pending.Wait()
	if !m.need(8) || s.files[le.Uint64(m.payload)] == nil {
		return s.fail(m, 3, "NfcAioProcessCloseFileMsg: invalid handle")
	}
	s.release(le.Uint64(m.payload))
	return s.reply(m, make([]byte, len(m.payload)), nil)
}

// nfcFile is one open disk.
type nfcFile struct {
	file     *os.File
	path     string // "[ds] dir/disk.vmdk"
	flat     string // on this machine
	capacity int64
	writable bool
	meta     diskMeta
	parent   string      // flat file of the parent, "" for a base disk
	allAlloc bool        // the datastore cannot tell holes
	ranges   []byteRange // allocation as it was at opening, for handles that write
	read     int64
}
