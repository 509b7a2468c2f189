package main

// SOAP in and out: what every request has, typed bodies, answers and faults.

import (
	"bytes"
	stdxml "encoding/xml"
	"fmt"
	"net/http"
	"reflect"
	"strconv"
	"strings"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/types"
	"github.com/vmware/govmomi/vim25/xml"
)

type moref struct {
	Type  string `xml:"type,attr"`
	Value string `xml:",chardata"`
}

func (m moref) ref() types.ManagedObjectReference {
	return types.ManagedObjectReference{Type: m.Type, Value: strings.TrimSpace(m.Value)}
}

// call holds the fields of a request that are looked at before its type is known.
type call struct {
	XMLName       stdxml.Name
	This          moref  `xml:"_this"`
	UserName      string `xml:"userName"`
	Password      string `xml:"password"`
	CloneTicket   string `xml:"cloneTicket"`
	SessionID     string `xml:"sessionID"`
	VM            moref  `xml:"vm"`
	DiskDeviceKey int32  `xml:"diskDeviceKey"`
	HostForAccess moref  `xml:"hostForAccess"`
	Quiesce       string `xml:"quiesce"`
	QuiesceSpec   *struct {
		Timeout int `xml:"timeout"`
	} `xml:"quiesceSpec"`
}

type envelope struct {
	Body struct {
		Call call `xml:",any"`
	}
}

// request is one SOAP call on its way through the layer.
type request struct {
	w      http.ResponseWriter
	r      *http.Request
	raw    []byte
	call   call
	name   string
	user   string
	cookie string
}

// typed decodes the request into the simulator library's type of that method.
func (q *request) typed() (interface{}, error) {
	m, err := simulator.UnmarshalBody(typeByName, q.raw)
	if err != nil {
		return nil, err
	}
	return m.Body, nil
}

var typeByName = func() func(string) (reflect.Type, bool) {
	f := types.TypeFunc()
	return func(name string) (reflect.Type, bool) { return f(name) }
}()

const (
	soapHead = `<?xml version="1.0" encoding="UTF-8"?>` + "\n" +
		`<soapenv:Envelope xmlns:soapenc="http://schemas.xmlsoap.org/soap/encoding/"` +
		` xmlns:soapenv="http://schemas.xmlsoap.org/soap/envelope/" xmlns:xsd="http://www.w3.org/2001/XMLSchema"` +
		` xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance"><soapenv:Body>`
	soapTail = `</soapenv:Body></soapenv:Envelope>`
)

func writeSOAP(w http.ResponseWriter, code int, body string) {
	b := soapHead + body + soapTail
	w.Header().Set("Content-Type", "text/xml; charset=utf-8")
	w.Header().Set("Content-Length", strconv.Itoa(len(b)))
	w.WriteHeader(code)
	_, _ = w.Write([]byte(b))
}

// answer sends <name>Response around ready XML.
func (q *request) answer(inner string) {
	writeSOAP(q.w, http.StatusOK, fmt.Sprintf(`<%sResponse xmlns="urn:vim25">%s</%sResponse>`, q.name, inner, q.name))
}

func (q *request) answerTask(ref types.ManagedObjectReference) {
	q.answer(`<returnval type="Task">` + ref.Value + `</returnval>`)
}

// answerValue sends one value or a slice of values as returnval elements.
func (q *request) answerValue(v interface{}) {
	var out bytes.Buffer
	rv := reflect.ValueOf(v)
	if rv.Kind() != reflect.Slice {
		s := reflect.MakeSlice(reflect.SliceOf(rv.Type()), 0, 1)
		rv = reflect.Append(s, rv)
	}
	for i := 0; i < rv.Len(); i++ {
		out.WriteString(encode(rv.Index(i).Interface(), "returnval"))
	}
	q.answer(out.String())
}

func encode(v interface{}, element string) string {
	var out bytes.Buffer
	e := xml.NewEncoder(&out)
	if err := e.EncodeElement(v, xml.StartElement{Name: xml.Name{Local: element}}); err != nil {
		panic(fmt.Sprintf("encode %T: %s", v, err))
	}
	return out.String()
}

// fail sends a fault; its name is its Go type's name.
func (q *request) fail(f types.BaseMethodFault) {
	kind := reflect.TypeOf(f).Elem().Name()
	var out bytes.Buffer
	e := xml.NewEncoder(&out)
	start := xml.StartElement{Name: xml.Name{Local: kind + "Fault"}, Attr: []xml.Attr{
		{Name: xml.Name{Local: "xmlns"}, Value: "urn:vim25"}, {Name: xml.Name{Local: "xsi:type"}, Value: kind}}}
	if err := e.EncodeElement(f, start); err != nil {
		panic(fmt.Sprintf("encode %T: %s", f, err))
	}
	writeSOAP(q.w, http.StatusInternalServerError, fmt.Sprintf(
		`<soapenv:Fault><faultcode>ServerFaultCode</faultcode><faultstring>%s</faultstring><detail>%s</detail></soapenv:Fault>`,
		escape(faultText(f)), out.String()))
}

func escape(s string) string {
	var b bytes.Buffer
	_ = stdxml.EscapeText(&b, []byte(s))
	return b.String()
}

func notFound(ref types.ManagedObjectReference) types.BaseMethodFault {
	return &types.ManagedObjectNotFound{Obj: ref}
}

func invalidArgument(property string) types.BaseMethodFault {
	return &types.InvalidArgument{InvalidProperty: property}
}

func fileFault(key, file string) types.BaseMethodFault {
	f := &types.FileFault{File: file}
	if key != "" {
		f.FaultMessage = []types.LocalizableMessage{{Key: key, Message: "Change tracking: " + key}}
	}
	return f
}

// faultText is the sentence that a real server sends along.
func faultText(f types.BaseMethodFault) string {
	switch x := f.(type) {
	case *types.ManagedObjectNotFound:
		return "The object '" + "vim." + x.Obj.Type + ":" + x.Obj.Value + "' has already been deleted or has not been completely created"
	case *types.InvalidArgument:
		return "A specified parameter was not correct: " + x.InvalidProperty
	case *types.FileLocked:
		return "Unable to access file " + x.File + " since it is locked"
	case *types.FileNotFound:
		return "File " + x.File + " was not found"
	case *types.FileAlreadyExists:
		return "Cannot complete the operation because the file or folder " + x.File + " already exists"
	case *types.NoDiskSpace:
		return "Insufficient disk space on datastore '" + x.Datastore + "'."
	case *types.FileFault:
		return "Error caused by file " + x.File
	case *types.NoPermission:
		return "Permission to perform this operation was denied."
	case *types.NotAuthenticated:
		return "The session is not authenticated."
	case *types.InvalidLogin:
		return "Cannot complete login due to an incorrect user name or password."
	case *types.TaskInProgress:
		return "Another task is already in progress."
	case *types.ApplicationQuiesceFault:
		return "An error occurred while quiescing the virtual machine."
	case *types.InvalidPowerState:
		return "The attempted operation cannot be performed in the current state (" + string(x.ExistingState) + ")."
	case *types.DuplicateName:
		return "The name '" + x.Name + "' already exists."
	case *types.InvalidDeviceSpec:
		return "Invalid configuration for device '" + strconv.Itoa(int(x.DeviceIndex)) + "'."
	}
	return reflect.TypeOf(f).Elem().Name()
}
