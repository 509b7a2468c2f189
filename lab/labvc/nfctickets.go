package main

// The SOAP half of NFC: tickets for the hosts' disk service.

import (
	"strconv"
	"time"

	"github.com/google/uuid"
	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/types"
)

const (
	nfcServiceMoref = "nfcService"
	nfcLibVersion   = 11
	ticketLife      = 10 * time.Minute
)

// ticket lets one connection to one host open disks of one VM.
type ticket struct {
	vm    types.ManagedObjectReference
	key   int32 // 0: every disk of the VM
	write bool
	host  string // moref
	made  time.Time
}

func (l *lab) retrieveInternalContent(q *request) {
	inner := ""
	for _, m := range [][3]string{
		{"nfcService", "NfcService", nfcServiceMoref}, {"proxyService", "ProxyService", "ha-proxy-service"},
		{"agentManager", "AgentManager", "AgentManager"}, {"internalStorageResourceManager", "InternalStorageResourceManager", "ISRM"},
		{"llProvisioningManager", "LowLevelProvisioningManager", "LLPM"}, {"hostDistributedVirtualSwitchManager", "HostDistributedVirtualSwitchManager", "HDVSM"},
	} {
		inner += `<` + m[0] + ` type="` + m[1] + `">` + m[2] + `</` + m[0] + `>`
	}
	q.answer("<returnval>" + inner + "</returnval>")
}

func (l *lab) nfcTicket(q *request) {
	if q.call.This.ref().Value != nfcServiceMoref {
		q.fail(notFound(q.call.This.ref()))
		return
	}
	vm := getVM(q.call.VM.ref())
	if vm == nil {
		q.fail(notFound(q.call.VM.ref()))
		return
	}
	t := &ticket{vm: vm.Self, host: vm.Runtime.Host.Value, made: time.Now(), write: q.name == "NfcRandomAccessOpenDisk"}
	if q.name != "NfcGetVmFiles" {
		t.key = q.call.DiskDeviceKey
		if !hasDisk(vm, t.key) {
			q.fail(invalidArgument("diskDeviceKey"))
			return
		}
		if h := q.call.HostForAccess.ref(); h.Value != "" {
			if _, ok := simulator.Map.Get(h).(*simulator.HostSystem); !ok {
				q.fail(notFound(h))
				return
			}
			t.host = h.Value
		}
	}
	host := l.hosts[t.host]
	if host == nil {
		q.fail(&types.HostNotConnected{})
		return
	}
	id := uuid.New().String()
	l.mu.Lock()
	l.tickets[id] = t
	l.mu.Unlock()
	thumbprint := host.thumbprint
	if l.faults.take("nfc-wrong-thumbprint", func(f *fault) bool { return f.matchesPath(host.name, "") }) != nil {
		thumbprint = thumbprintSHA1(host.wrongCert)
	}
	q.answerValue(types.HostServiceTicket{Host: l.site.address(), Port: int32(host.port), SslThumbprint: thumbprint,
		Service: "vpxa-nfc", ServiceVersion: "1.1", SessionId: id})
}

func hasDisk(vm *simulator.VirtualMachine, key int32) bool {
	for _, k := range filesOf(vm).key {
		if k == key {
			return true
		}
	}
	return false
}

func (l *lab) nfcLibVersion(q *request) {
	if q.call.This.ref().Value != nfcServiceMoref {
		q.fail(notFound(q.call.This.ref()))
		return
	}
	h := q.call.HostForAccess.ref()
	if h.Value == "" {
		q.fail(invalidArgument("hostForAccess"))
		return
	}
	if _, ok := simulator.Map.Get(h).(*simulator.HostSystem); !ok {
		q.fail(notFound(h))
		return
	}
	q.answer("<returnval>" + strconv.Itoa(nfcLibVersion) + "</returnval>")
}

// useTicket consumes a ticket at the host that it was made for.
func (l *lab) useTicket(id, host string) *ticket {
	l.mu.Lock()
	defer l.mu.Unlock()
	t := l.tickets[id]
	if t == nil || t.host != host || time.Since(t.made) > ticketLife {
		return nil
	}
	delete(l.tickets, id)
	return t
}
