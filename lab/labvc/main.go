// labvc is a vCenter with ESXi hosts for tests. The simulator of Debian's govmomi supplies inventory
// and property collector; the layer here adds what it lacks: change tracking, snapshots that freeze
// data, consolidation, sessions, privileges, NFC, and faults on request. See README.md.
package main

import (
	"crypto/tls"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/signal"
	"sort"
	"strconv"
	"syscall"

	"github.com/vmware/govmomi/simulator"
	_ "github.com/vmware/govmomi/vapi/simulator" // tags over REST
)

type readyHost struct {
	Name    string `json:"name"`
	Moref   string `json:"moref"`
	Address string `json:"address"`
}

type readyLine struct {
	Ready            bool        `json:"ready"`
	VCenter          string      `json:"vcenter"`
	Control          string      `json:"control,omitempty"`
	ThumbprintSHA1   string      `json:"thumbprint_sha1"`
	ThumbprintSHA256 string      `json:"thumbprint_sha256"`
	Hosts            []readyHost `json:"hosts"`
}

func main() {
	siteFile := flag.String("site", "", "site file")
	plain := flag.Bool("plain", false, "the simulator alone, without the laboratory's layer")
	listen := flag.String("l", "127.0.0.1:0", "-plain: listen address")
	machines := flag.Int("vm", 2, "-plain: VMs per resource pool")
	stdinExit := flag.Bool("stdinexit", false, "end when standard input closes")
	flag.Parse()
	log.SetPrefix("labvc ")
	end := make(chan os.Signal, 2)
	signal.Notify(end, syscall.SIGINT, syscall.SIGTERM)
	if *stdinExit {
		go func() {
			_, _ = io.Copy(io.Discard, os.Stdin)
			end <- syscall.SIGTERM
		}()
	}
	var stop func()
	var err error
	if *plain {
		stop, err = runPlain(*listen, *machines)
	} else {
		stop, err = runSite(*siteFile)
	}
	if err != nil {
		log.Fatal(err)
	}
	<-end
	stop()
}

func say(r readyLine) error {
	r.Ready = true
	b, err := json.Marshal(r)
	if err != nil {
		return err
	}
	_, err = fmt.Println(string(b))
	return err
}

func startService(m *simulator.Model, listen string, cert tls.Certificate) *simulator.Server {
	m.Service.RegisterEndpoints = true
	m.Service.Listen = &url.URL{Host: listen}
	m.Service.TLS = &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS12}
	return m.Service.NewServer()
}

func runPlain(listen string, machines int) (func(), error) {
	m := simulator.VPX()
	m.Machine = machines
	m.ServiceContent.About.ApiVersion = "8.0.3.0"
	if err := m.Create(); err != nil {
		return nil, err
	}
	cert, err := newCertificate("vcsim")
	if err != nil {
		return nil, err
	}
	s := startService(m, listen, cert)
	return m.Remove, say(readyLine{VCenter: s.URL.Host, ThumbprintSHA1: thumbprintSHA1(cert), ThumbprintSHA256: thumbprintSHA256(cert), Hosts: []readyHost{}})
}

func emptyVCenter(version string) *simulator.Model {
	m := simulator.VPX()
	m.Datacenter, m.Portgroup, m.Host, m.Cluster, m.ClusterHost, m.Datastore, m.Machine = 0, 0, 0, 0, 0, 0, 0
	about := &m.ServiceContent.About
	about.Name, about.Version, about.Build, about.ApiVersion = "VMware vCenter Server", "8.0.3", "24022515", version
	about.FullName = "VMware vCenter Server 8.0.3 build-24022515"
	return m
}

func runSite(file string) (func(), error) {
	if file == "" {
		return nil, fmt.Errorf("give -site FILE or -plain")
	}
	site, err := readSite(file)
	if err != nil {
		return nil, err
	}
	l := newLab(site)
	l.model = emptyVCenter(site.APIVersion)
	if err := l.model.Create(); err != nil {
		return nil, err
	}
	simulator.Map.AddHandler(taskNames{})
	if err := l.buildInventory(); err != nil {
		return nil, err
	}
	cert, err := newCertificate("vcenter")
	if err != nil {
		return nil, err
	}
	control, err := net.Listen("tcp", site.Control)
	if err != nil {
		return nil, err
	}
	s := startService(l.model, site.Listen, cert)
	l.next = s.Config.Handler
	s.Config.Handler = l
	if err := l.createTags(); err != nil {
		return nil, err
	}
	ready := readyLine{VCenter: s.URL.Host, Control: control.Addr().String(), ThumbprintSHA1: thumbprintSHA1(cert),
		ThumbprintSHA256: thumbprintSHA256(cert), Hosts: []readyHost{}}
	for _, h := range l.hosts {
		go h.serve()
		ready.Hosts = append(ready.Hosts, readyHost{h.name, h.moref, net.JoinHostPort(site.address(), strconv.Itoa(h.port))})
	}
	sort.Slice(ready.Hosts, func(i, j int) bool { return ready.Hosts[i].Name < ready.Hosts[j].Name })
	go func() { log.Print(http.Serve(control, l.control())) }()
	return l.model.Remove, say(ready)
}
