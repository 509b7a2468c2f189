package main

import (
	"bytes"
	"crypto/tls"
	"io"
	"net"
	"testing"
)

// What a client sends raw right behind its last TLS record must still be in the socket.
func TestRecordConnLeavesWhatFollowsTheRecord(t *testing.T) {
	cert, err := newCertificate("test")
	if err != nil {
		t.Fatal(err)
	}
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		go func() {
			c, err := net.Dial("tcp", l.Addr().String())
			if err != nil {
				return
			}
			s := tls.Client(c, &tls.Config{InsecureSkipVerify: true, MaxVersion: version})
			_, _ = s.Write(bytes.Repeat([]byte("line\n"), 10))
			_, _ = c.Write([]byte("raw bytes"))
			_ = c.Close()
		}()
		c, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		s, err := serverTLS(c, cert)
		if err != nil {
			t.Fatal(err)
		}
		b := make([]byte, 50)
		if _, err := io.ReadFull(s, b); err != nil {
			t.Fatal(err)
		}
		rest, err := io.ReadAll(c)
		if err != nil || string(rest) != "raw bytes" {
			t.Errorf("TLS %x: %q %v", version, rest, err)
		}
		_ = c.Close()
		_ = l.Close()
	}
}

func TestStrictReaderWaitsForAnotherRecord(t *testing.T) {
	here, there := net.Pipe()
	defer here.Close()
	stalls := 0
	r := &strictReader{conn: there, stall: func() { stalls++ }}
	go func() {
		_, _ = here.Write([]byte("onetwo")) // two messages in one record
		_, _ = here.Write([]byte("wakeup"))
	}()
	read := func() string {
		if err := r.begin(); err != nil {
			t.Fatal(err)
		}
		b := make([]byte, 3)
		if _, err := io.ReadFull(r, b); err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	if got := read(); got != "one" || stalls != 0 {
		t.Errorf("%q, %d stalls", got, stalls)
	}
	if got := read(); got != "two" || stalls != 1 {
		t.Errorf("%q, %d stalls", got, stalls)
	}
}
