package main

// The first half of an NFC connection: greeting, TLS, authentication by ticket, change of carrier.

import (
	"bufio"
	"crypto/tls"
	"fmt"
	"io"
	"log"
	"net"
	"strings"
	"time"
)

// esxHost is one simulated ESXi host's TCP service.
type esxHost struct {
	l          *lab
	name       string
	moref      string
	port       int
	cert       tls.Certificate
	wrongCert  tls.Certificate
	thumbprint string
	listener   net.Listener
}

const (
	authdTimeout = 30 * time.Second
	maxLineBytes = 4096
)

func (l *lab) newHost(name, moref string) (*esxHost, error) {
	h := &esxHost{l: l, name: name, moref: moref}
	var err error
	if h.cert, err = newCertificate(name); err != nil {
		return nil, err
	}
	if h.wrongCert, err = newCertificate(name); err != nil {
		return nil, err
	}
	h.thumbprint = thumbprintSHA1(h.cert)
	if h.listener, err = net.Listen("tcp", net.JoinHostPort(l.site.address(), "0")); err != nil {
		return nil, err
	}
	h.port = h.listener.Addr().(*net.TCPAddr).Port
	l.stats.host(name, func(*hostStats) {})
	return h, nil
}

func (h *esxHost) serve() {
	for {
		c, err := h.listener.Accept()
		if err != nil {
			return
		}
		go func() {
			h.l.stats.host(h.name, func(s *hostStats) { s.ConnectionsOpen++; s.ConnectionsTotal++ })
			defer h.l.stats.host(h.name, func(s *hostStats) { s.ConnectionsOpen-- })
			defer c.Close()
			if err := h.connection(c); err != nil && err != io.EOF {
				log.Printf("nfc %s %s: %s", h.name, c.RemoteAddr(), err)
			}
		}()
	}
}

// due takes a fault that concerns this host as a whole.
func (h *esxHost) due(kind string) *fault {
	return h.l.faults.take(kind, func(f *fault) bool { return f.matchesPath(h.name, "") })
}

// recordConn never reads past the end of a TLS record, so that what follows the last record of a
// TLS session is still in the socket when the session is abandoned.
type recordConn struct {
	net.Conn
	head [5]byte
	have int // bytes of the head seen
	left int // bytes of the body still to come
}

func (c *recordConn) Read(p []byte) (int, error) {
	if c.left > 0 {
		if len(p) > c.left {
			p = p[:c.left]
		}
		n, err := c.Conn.Read(p)
		c.left -= n
		return n, err
	}
	if len(p) > len(c.head)-c.have {
		p = p[:len(c.head)-c.have]
	}
	n, err := c.Conn.Read(p)
	copy(c.head[c.have:], p[:n])
	if c.have += n; c.have == len(c.head) {
		c.left, c.have = int(c.head[3])<<8|int(c.head[4]), 0
	}
	return n, err
}

func serverTLS(c net.Conn, cert tls.Certificate) (*tls.Conn, error) {
	t := tls.Server(&recordConn{Conn: c}, &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS12,
		DynamicRecordSizingDisabled: true})
	return t, t.Handshake()
}

// authd is the state of the dialogue before NFC.
type authd struct {
	h       *esxHost
	sha256  bool
	session string
	tag     string
	ticket  *ticket
	service string
}

func (h *esxHost) connection(c net.Conn) error {
	_ = c.(*net.TCPConn).SetNoDelay(true)
	_ = c.SetDeadline(time.Now().Add(authdTimeout))
	if h.due("nfc-busy") != nil {
		_, err := io.WriteString(c, "421 Service not available: too many connections\r\n")
		return err
	}
	a := &authd{h: h, sha256: h.due("nfc-no-sha256") == nil}
	greeting := "220 VMware Authentication Daemon Version 1.10: SSL Required, ServerDaemonProtocol:SOAP, MKSDisplayProtocol:VNC , VMXARGS supported"
	if h.due("nfc-no-ssl") == nil {
		greeting += ", NFCSSL supported/t"
	}
	if a.sha256 {
		greeting += ", SHA256 supported"
	}
	if _, err := io.WriteString(c, greeting+"\r\n"); err != nil {
		return err
	}
	t, err := serverTLS(c, h.cert)
	if err != nil {
		return fmt.Errorf("first TLS handshake: %w", err)
	}
	if err := a.dialogue(t); err != nil || a.ticket == nil {
		return err
	}
	// TLS #1 ends here without close_notify; the TCP connection goes on.
	var carrier net.Conn = c
	secure := strings.HasSuffix(a.service, "ssl")
	if secure {
		cert := h.cert
		if h.due("nfc-wrong-certificate") != nil {
			cert = h.wrongCert
		}
		if carrier, err = serverTLS(c, cert); err != nil {
			return fmt.Errorf("second TLS handshake: %w", err)
		}
	}
	_ = c.SetDeadline(time.Time{})
	return newNFCSession(h, a, carrier, secure).run()
}

// dialogue answers command lines until PROXY was accepted or the client is gone.
func (a *authd) dialogue(t *tls.Conn) error {
	lines := bufio.NewReaderSize(t, maxLineBytes)
	for {
		line, err := lines.ReadSlice('\n')
		if err != nil {
			return err
		}
		word, rest := strings.TrimRight(string(line), "\r\n"), ""
		if i := strings.IndexByte(word, ' '); i >= 0 {
			word, rest = word[:i], word[i+1:]
		}
		reply := a.command(word, rest)
		if reply == "" {
			continue
		}
		if _, err := io.WriteString(t, reply+"\r\n"); err != nil || a.ticket != nil {
			return err
		}
	}
}

func (a *authd) command(word, rest string) string {
	switch word {
	case "SESSION":
		a.session = strings.TrimSpace(rest)
		return ""
	case "BANNER":
		return "220 VMware Authentication Daemon Version 1.10"
	case "THUMBPRINT_SHA2":
		return a.thumbprint(rest)
	case "PROXY":
		return a.proxy(strings.TrimSpace(rest))
	case "USER", "PASS":
		return "530 Login incorrect."
	}
	return "530 Please login with USER and PASS."
}

func (a *authd) thumbprint(tag string) string {
	switch {
	case !a.sha256:
		return "530 Please login with USER and PASS."
	case strings.Contains(tag, ":") || tag == "":
		return "501 Invalid arguments"
	}
	a.tag = tag
	if a.h.due("nfc-wrong-sha256") != nil {
		return "200 " + thumbprintSHA256(a.h.wrongCert)
	}
	return "200 " + thumbprintSHA256(a.h.cert)
}

func (a *authd) proxy(service string) string {
	switch service {
	case "nfc", "vpxa-nfc", "nfcssl", "vpxa-nfcssl":
	default:
		return "501 Invalid arguments"
	}
	if a.ticket = a.h.l.useTicket(a.session, a.h.moref); a.ticket == nil {
		return "530 Please login with USER and PASS."
	}
	a.service = service
	if strings.HasSuffix(service, "ssl") {
		return "200 Connect ha-nfcssl"
	}
	return "200 Connect ha-nfc"
}
