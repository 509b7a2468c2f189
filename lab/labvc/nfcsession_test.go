package main

import (
	"encoding/binary"
	"io"
	"math/rand"
	"net"
	"os"
	"testing"
	"time"
)

// A client may send anything; the host answers or hangs up, but lives.
func TestRandomMessagesDoNoHarm(t *testing.T) {
	l := newLab(&Site{User: "u", Password: "p"})
	h := &esxHost{l: l, name: "esx"}
	name := sparse(t, 1<<20)
	r := rand.New(rand.NewSource(17))
	some := []uint64{0, 1, 2, 3, 7, 512, 4096, 65536, 65537, 1 << 20, 1 << 31, 1 << 40, 1 << 63, ^uint64(0)}
	for round := 0; round < 300; round++ {
		here, there := net.Pipe()
		s := newNFCSession(h, &authd{h: h, ticket: &ticket{}}, there, false)
		file, err := os.OpenFile(name, os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		s.files[2] = &nfcFile{file: file, path: "[ds] a/a.vmdk", flat: name, capacity: 1 << 20, writable: round%2 == 0}
		l.open[name] = 1
		end := make(chan struct{})
		go func() {
			go func() {
				for j := range s.jobs {
					j()
				}
			}()
			for {
				if done, err := s.next(); done || err != nil {
					break
				}
			}
			_ = there.Close()
			s.pending.Wait()
			s.closeFiles()
			close(end)
		}()
		go func() { _, _ = io.Copy(io.Discard, here) }()
		for i := 0; i < 10; i++ {
			m := make([]byte, aioHeadBytes+60+r.Intn(100))
			putHead(m, []uint32{2, 3, 4, 5, 7, 7, 7, 9, 11, 13, 22, 99}[r.Intn(12)], []uint32{0, 4, 16, 44, 44, 48, 60}[r.Intn(7)], uint32(i))
			for at := aioHeadBytes; at+8 <= len(m); at += 4 {
				binary.LittleEndian.PutUint32(m[at:], uint32(some[r.Intn(len(some))]))
			}
			binary.LittleEndian.PutUint64(m[aioHeadBytes:], 2) // the open file, mostly
			_ = here.SetWriteDeadline(time.Now().Add(50 * time.Millisecond))
			if _, err := here.Write(m); err != nil {
				break
			}
		}
		_ = here.Close()
		select {
		case <-end:
		case <-time.After(10 * time.Second):
			t.Fatal("the session does not end")
		}
	}
}
