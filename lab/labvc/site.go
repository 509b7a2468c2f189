package main

// The site file: what the inventory shall be.

import (
	"encoding/json"
	"fmt"
	"net"
	"os"
	"path/filepath"
)

// Site is the content of site.json; README.md describes it.
type Site struct {
	Listen       string           `json:"listen"`
	Control      string           `json:"control"`
	APIVersion   string           `json:"api_version"`
	User         string           `json:"user"`
	Password     string           `json:"password"`
	Users        []SiteUser       `json:"users"`
	SessionIdleS float64          `json:"session_idle_s"`
	Datacenters  []SiteDatacenter `json:"datacenters"`
	VMs          []SiteVM         `json:"vms"`
	CBTPageBytes int64            `json:"cbt_page_bytes"`
	Hardware     string           `json:"hardware"` // address of the process that shows proxy VMs their disks
}

type SiteUser struct {
	Name     string   `json:"name"`
	Password string   `json:"password"`
	Denied   []string `json:"denied"`
}

type SiteDatacenter struct {
	Name       string          `json:"name"`
	Folders    []string        `json:"folders"`
	Networks   []string        `json:"networks"`
	Clusters   []SiteCluster   `json:"clusters"`
	Datastores []SiteDatastore `json:"datastores"`
}

type SiteCluster struct {
	Name  string   `json:"name"`
	Hosts []string `json:"hosts"`
	Pools []string `json:"pools"`
}

type SiteDatastore struct {
	Name          string `json:"name"`
	Type          string `json:"type"`
	Path          string `json:"path"`
	CapacityBytes int64  `json:"capacity_bytes"`
	ExtentName    string `json:"extent_name"` // VMFS: the LUN's name, made up when empty
	// VMFS: all LUNs in their order, instead of extent_name.
	Extents       []SiteExtent `json:"extents"`
	VmfsUUID      string       `json:"vmfs_uuid"`    // VMFS: made up when empty
	VmfsVersion   string       `json:"vmfs_version"` // VMFS: 6.82 when empty
	RemoteHost    string       `json:"remote_host"`  // NFS: 127.0.0.1 when empty
	RemoteHosts   []string     `json:"remote_hosts"` // NFS41: all addresses, the remote host when empty
	RemotePath    string       `json:"remote_path"`  // NFS: the local path when empty
	Hosts         []string     `json:"hosts"`        // those that mount it; all of the datacenter when empty
	ReadOnlyHosts []string     `json:"read_only_hosts"`
	Told          bool         `json:"told"` // the hardware process is told before and after files change there
}

type SiteExtent struct {
	DiskName  string `json:"disk_name"`
	Partition int32  `json:"partition"`
}

func isNFS(kind string) bool {
	return kind == "NFS" || kind == "NFS41"
}

type SiteVM struct {
	Name        string            `json:"name"`
	Datacenter  string            `json:"datacenter"`
	Folder      string            `json:"folder"`
	Cluster     string            `json:"cluster"`
	Pool        string            `json:"pool"`
	Host        string            `json:"host"`
	Power       string            `json:"power"`
	GuestID     string            `json:"guest_id"`
	Annotation  string            `json:"annotation"`
	Tags        []string          `json:"tags"`
	MemoryMB    int64             `json:"memory_mb"`
	CPUs        int32             `json:"cpus"`
	Firmware    string            `json:"firmware"`
	Network     string            `json:"network"` // the datacenter's first when empty
	CBT         bool              `json:"cbt"`
	Template    bool              `json:"template"`
	Disks       []SiteDisk        `json:"disks"`
	UUID        string            `json:"uuid"`       // BIOS UUID, made up when empty
	Version     string            `json:"version"`    // virtual hardware
	GuestView   string            `json:"guest_view"` // name at the hardware process, which shows this VM its disks
	ExtraConfig map[string]string `json:"extra_config"`
	KeyID       string            `json:"key_id"`      // encrypted with this key
	Tools       string            `json:"tools"`       // "running" when empty; "stopped", "missing"
	BusSharing  string            `json:"bus_sharing"` // of its SCSI controllers: noSharing when empty, virtualSharing, physicalSharing
}

type SiteDisk struct {
	CapacityBytes int64  `json:"capacity_bytes"`
	Thin          bool   `json:"thin"`
	Datastore     string `json:"datastore"`
	Image         string `json:"image"`
	Mode          string `json:"mode"`
	Controller    string `json:"controller"`
	Eager         bool   `json:"eager"`   // thick, zeroed when it was made
	Sharing       string `json:"sharing"` // sharingMultiWriter
	RDM           string `json:"rdm"`     // raw device mapping: "physical" or "virtual"; no data reaches a client
	Label         string `json:"label"`   // informal; the device label is always "Hard disk N"
}

func readSite(file string) (*Site, error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	s := &Site{}
	if err := json.Unmarshal(b, s); err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	return s, s.check()
}

func orElse(v *string, d string) {
	if *v == "" {
		*v = d
	}
}

// address is where the site listens: its hosts have it too, with ports of their own.
func (s *Site) address() string {
	host, _, err := net.SplitHostPort(s.Listen)
	if err != nil || host == "" {
		return "127.0.0.1"
	}
	return host
}

func (s *Site) check() error {
	orElse(&s.Listen, "127.0.0.1:0")
	orElse(&s.Control, "127.0.0.1:0")
	orElse(&s.APIVersion, "8.0.3.0")
	orElse(&s.User, "administrator@vsphere.local")
	if s.Password == "" {
		return fmt.Errorf("site: password is missing")
	}
	if len(s.Datacenters) == 0 {
		return fmt.Errorf("site: no datacenters")
	}
	for i := range s.Datacenters {
		d := &s.Datacenters[i]
		for j := range d.Datastores {
			ds := &d.Datastores[j]
			orElse(&ds.Type, "VMFS")
			if !storageTypes[ds.Type] {
				return fmt.Errorf("datastore %s: type %q is none of VMFS, NFS, NFS41, vsan, VVOL", ds.Name, ds.Type)
			}
			if !filepath.IsAbs(ds.Path) || ds.CapacityBytes <= 0 {
				return fmt.Errorf("datastore %s: needs an absolute path and a capacity", ds.Name)
			}
			ds.Path = filepath.Clean(ds.Path)
		}
	}
	for i := range s.VMs {
		if err := s.VMs[i].check(s); err != nil {
			return err
		}
	}
	return nil
}

func (s *Site) datacenter(name string) *SiteDatacenter {
	for i := range s.Datacenters {
		if s.Datacenters[i].Name == name {
			return &s.Datacenters[i]
		}
	}
	return nil
}

func (v *SiteVM) check(s *Site) error {
	orElse(&v.Datacenter, s.Datacenters[0].Name)
	dc := s.datacenter(v.Datacenter)
	if dc == nil || len(dc.Clusters) == 0 || len(dc.Datastores) == 0 {
		return fmt.Errorf("VM %s: datacenter %q is unknown, or has no cluster or datastore", v.Name, v.Datacenter)
	}
	orElse(&v.Cluster, dc.Clusters[0].Name)
	orElse(&v.Power, "off")
	orElse(&v.GuestID, "debian11_64Guest")
	orElse(&v.Firmware, "bios")
	if err := v.checkFacts(); err != nil {
		return err
	}
	orElse(&v.Version, defaultHardware)
	orElse(&v.UUID, vmUUID("42", v))
	if v.MemoryMB == 0 {
		v.MemoryMB = 1024
	}
	if v.CPUs == 0 {
		v.CPUs = 1
	}
	for i := range v.Disks {
		d := &v.Disks[i]
		orElse(&d.Datastore, dc.Datastores[0].Name)
		orElse(&d.Mode, "persistent")
		orElse(&d.Controller, "scsi")
		if d.Image != "" {
			st, err := os.Stat(d.Image)
			if err != nil {
				return fmt.Errorf("VM %s disk %d: %w", v.Name, i, err)
			}
			if d.CapacityBytes == 0 {
				d.CapacityBytes = st.Size()
			}
		}
		if d.CapacityBytes <= 0 || d.CapacityBytes%512 != 0 {
			return fmt.Errorf("VM %s disk %d: capacity %d is no multiple of 512", v.Name, i, d.CapacityBytes)
		}
	}
	return nil
}
