package main

// The HTTP layer before the simulator: sessions, privileges, injected faults, and the methods that
// the laboratory answers itself.

import (
	"bytes"
	"encoding/json"
	"encoding/xml"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"regexp"
	"runtime/debug"
	"strconv"
	"strings"
	"time"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/types"
)

type handlerFunc func(l *lab, q *request)

// handlers are the methods that the layer answers instead of the simulator.
var handlers = map[string]handlerFunc{
	"Login":                        (*lab).login,
	"Logout":                       (*lab).logout,
	"AcquireCloneTicket":           (*lab).acquireCloneTicket,
	"CloneSession":                 (*lab).cloneSession,
	"SessionIsActive":              (*lab).sessionIsActive,
	"HasPrivilegeOnEntities":       (*lab).hasPrivilegeOnEntities,
	"HasPrivilegeOnEntity":         (*lab).hasPrivilegeOnEntity,
	"HasUserPrivilegeOnEntities":   (*lab).hasUserPrivilegeOnEntities,
	"FetchUserPrivilegeOnEntities": (*lab).fetchUserPrivilegeOnEntities,
	"RetrieveInternalContent":      (*lab).retrieveInternalContent,
	"NfcGetVmFiles":                (*lab).nfcTicket,
	"NfcRandomAccessOpenReadonly":  (*lab).nfcTicket,
	"NfcRandomAccessOpenDisk":      (*lab).nfcTicket,
	"NfcGetServerNfcLibVersion":    (*lab).nfcLibVersion,
	"QueryChangedDiskAreas":        (*lab).queryChangedDiskAreas,
	"CreateSnapshot_Task":          (*lab).createSnapshot,
	"CreateSnapshotEx_Task":        (*lab).createSnapshot,
	"RemoveSnapshot_Task":          (*lab).removeSnapshot,
	"RemoveAllSnapshots_Task":      (*lab).removeAllSnapshots,
	"RevertToSnapshot_Task":        (*lab).revertToSnapshot,
	"RevertToCurrentSnapshot_Task": (*lab).revertToCurrentSnapshot,
	"ConsolidateVMDisks_Task":      (*lab).consolidateVMDisks,
	"ReconfigVM_Task":              (*lab).reconfigVM,
	"CreateVM_Task":                (*lab).createVM,
	"RegisterVM_Task":              (*lab).registerVM,
	"UnregisterVM":                 (*lab).unregisterVM,
	"Destroy_Task":                 (*lab).destroy,
	"PowerOnVM_Task":               (*lab).power,
	"PowerOffVM_Task":              (*lab).power,
	"ShutdownGuest":                (*lab).shutdownGuest,
	"RefreshDatastore":             (*lab).refreshDatastore,
	"RefreshStorageInfo":           (*lab).refreshStorageInfo,
	"QueryConfigOption":            (*lab).queryConfigOption,
	"QueryPerf":                    (*lab).queryPerf,
}

// withoutSession are the methods that a stranger may call.
var withoutSession = map[string]bool{"RetrieveServiceContent": true, "Login": true, "CloneSession": true}

// readers are the simulator's methods that change nothing; several may run at once.
var readers = regexp.MustCompile(`^(Retrieve|Query|Find|Current|Fetch|Search|Estimate|Read|ValidateMigration)`)

func (l *lab) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	cookie := ""
	if c, err := r.Cookie("vmware_soap_session"); err == nil {
		cookie = strings.Trim(c.Value, `"`)
	}
	switch {
	case strings.HasPrefix(r.URL.Path, "/folder"):
		l.serveFolder(w, r, cookie)
	case strings.HasPrefix(r.URL.Path, "/rest/") || strings.HasPrefix(r.URL.Path, "/api/"):
		l.serveREST(w, r)
	case r.Method == http.MethodPost && strings.HasPrefix(r.URL.Path, "/sdk"):
		l.serveSOAP(w, r, cookie)
	default:
		l.next.ServeHTTP(w, r)
	}
}

func (l *lab) serveSOAP(w http.ResponseWriter, r *http.Request, cookie string) {
	raw, err := io.ReadAll(r.Body)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	var e envelope
	if err := xml.Unmarshal(raw, &e); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	q := &request{w: w, r: r, raw: raw, call: e.Body.Call, name: e.Body.Call.XMLName.Local, cookie: cookie}
	l.stats.soap(q.name)
	if f := l.faults.take("soap-delay", func(f *fault) bool { return f.matchesCall(q.name, l.vmNameOf(q)) }); f != nil {
		time.Sleep(f.delay())
	}
	user, ok := l.sessions.touch(cookie)
	q.user = user
	if !ok && !withoutSession[q.name] {
		q.fail(&types.NotAuthenticated{NoPermission: types.NoPermission{Object: q.call.This.ref(), PrivilegeId: "System.View"}})
		return
	}
	if p := l.missingPrivilege(q); p != "" {
		q.fail(&types.NoPermission{Object: q.call.This.ref(), PrivilegeId: p})
		return
	}
	if l.injectFault(q) {
		return
	}
	if h := handlers[q.name]; h != nil {
		h(l, q)
		return
	}
	l.pass(q)
}

// injectFault answers a call with the fault that the operator asked for.
func (l *lab) injectFault(q *request) bool {
	name := l.vmNameOf(q)
	f := l.faults.take("soap-fault", func(f *fault) bool { return f.matchesCall(q.name, name) })
	if f == nil {
		return false
	}
	mf := namedFault(f.Fault, q.call.This.ref(), name)
	if !f.AsTaskError {
		q.fail(mf)
		return true
	}
	obj := simulator.Map.Get(q.call.This.ref())
	if obj == nil {
		q.fail(notFound(q.call.This.ref()))
		return true
	}
	q.answerTask(l.startTask(obj, q.name, q.user, func(func(int)) (types.AnyType, types.BaseMethodFault) { return nil, mf }))
	return true
}

// vmNameOf names the VM that a call is about, by itself or through its snapshot.
func (l *lab) vmNameOf(q *request) string {
	ref := q.call.This.ref()
	if s := getSnapshot(ref); s != nil {
		ref = s.Vm
	}
	if vm := getVM(ref); vm != nil {
		return vm.Name
	}
	if vm := getVM(q.call.VM.ref()); vm != nil {
		return vm.Name
	}
	return ""
}

// pass hands the call to the simulator and its answer to the client.
func (l *lab) pass(q *request) *httptest.ResponseRecorder {
	rec := l.forward(q)
	l.send(q.w, rec)
	return rec
}

// forward answers with what the simulator says. It panics where a real server says something
// harmless: a property that is not set has no value, and nothing else is known to do so.
func (l *lab) forward(q *request) (rec *httptest.ResponseRecorder) {
	defer func() {
		if p := recover(); p != nil {
			rec = httptest.NewRecorder()
			answer := *q
			answer.w = rec
			if q.name == "Fetch" {
				answer.answer("")
				return
			}
			log.Printf("%s: the simulator panics: %v\n%s", q.name, p, debug.Stack())
			answer.fail(&types.SystemError{Reason: "internal error"})
		}
	}()
	r := q.r.Clone(q.r.Context())
	r.Body, r.ContentLength = io.NopCloser(bytes.NewReader(q.raw)), int64(len(q.raw))
	rec = httptest.NewRecorder()
	switch {
	case strings.HasPrefix(q.name, "WaitForUpdates"): // may last for minutes
	case readers.MatchString(q.name):
		l.world.RLock()
		defer l.world.RUnlock()
	default:
		l.world.Lock()
		defer l.world.Unlock()
	}
	l.next.ServeHTTP(rec, r)
	return rec
}

func (l *lab) send(w http.ResponseWriter, rec *httptest.ResponseRecorder) {
	for k, v := range rec.Header() {
		w.Header()[k] = v
	}
	w.Header().Set("Content-Length", strconv.Itoa(rec.Body.Len()))
	w.WriteHeader(rec.Code)
	_, _ = w.Write(rec.Body.Bytes())
}

func (l *lab) serveFolder(w http.ResponseWriter, r *http.Request, cookie string) {
	user, ok := l.sessions.touch(cookie)
	if !ok {
		if name, pass, basic := r.BasicAuth(); basic && l.sessions.passwordOK(name, pass) {
			user, ok = name, true
		}
	}
	if !ok {
		w.Header().Set("WWW-Authenticate", `Basic realm="VMware HTTP server"`)
		http.Error(w, "unauthorized", http.StatusUnauthorized)
		return
	}
	privilege := "Datastore.Browse"
	if r.Method == http.MethodPut || r.Method == http.MethodPost {
		privilege = "Datastore.FileManagement"
	}
	if l.sessions.denied(user, privilege) {
		http.Error(w, "permission denied: "+privilege, http.StatusForbidden)
		return
	}
	l.stats.soap("folder " + r.Method)
	l.next.ServeHTTP(w, r)
}

const (
	restSessionPath   = "/rest/com/vmware/cis/session"
	restSessionHeader = "vmware-api-session-id"
)

func (l *lab) serveREST(w http.ResponseWriter, r *http.Request) {
	login := r.URL.Path == restSessionPath && r.Method == http.MethodPost && r.URL.RawQuery == ""
	id := r.Header.Get(restSessionHeader)
	if c, err := r.Cookie(restSessionHeader); id == "" && err == nil {
		id = c.Value
	}
	name, pass, _ := r.BasicAuth()
	if login && !l.sessions.passwordOK(name, pass) || !login && !l.sessions.rest(id, "") {
		http.Error(w, `{"type":"com.vmware.vapi.std.errors.unauthenticated","value":{"messages":[]}}`, http.StatusUnauthorized)
		return
	}
	l.stats.soap("rest " + r.Method)
	l.world.Lock()
	defer l.world.Unlock()
	rec := httptest.NewRecorder()
	l.next.ServeHTTP(rec, r)
	if login {
		var made struct {
			Value string `json:"value"`
		}
		if json.Unmarshal(rec.Body.Bytes(), &made) == nil {
			l.sessions.rest(made.Value, name)
		}
	}
	l.send(w, rec)
}

func (l *lab) login(q *request) {
	if !l.sessions.passwordOK(q.call.UserName, q.call.Password) {
		q.fail(&types.InvalidLogin{})
		return
	}
	rec := l.forward(q)
	for _, k := range rec.Result().Cookies() {
		if k.Name == "vmware_soap_session" {
			l.sessions.add(strings.Trim(k.Value, `"`), q.call.UserName)
		}
	}
	l.send(q.w, rec)
}

func (l *lab) logout(q *request) {
	l.sessions.remove(q.cookie)
	l.pass(q)
}

var returnvalRE = regexp.MustCompile(`<returnval>([^<]+)</returnval>`)

func (l *lab) acquireCloneTicket(q *request) {
	rec := l.forward(q)
	if m := returnvalRE.FindSubmatch(rec.Body.Bytes()); m != nil {
		l.sessions.mu.Lock()
		l.sessions.clones[string(m[1])] = q.user
		l.sessions.mu.Unlock()
	}
	l.send(q.w, rec)
}

func (l *lab) cloneSession(q *request) {
	l.sessions.mu.Lock()
	user, ok := l.sessions.clones[q.call.CloneTicket]
	delete(l.sessions.clones, q.call.CloneTicket)
	l.sessions.mu.Unlock()
	if !ok {
		q.fail(&types.InvalidLogin{})
		return
	}
	rec := l.forward(q)
	for _, k := range rec.Result().Cookies() {
		if k.Name == "vmware_soap_session" {
			l.sessions.add(strings.Trim(k.Value, `"`), user)
		}
	}
	l.send(q.w, rec)
}

func (l *lab) sessionIsActive(q *request) {
	q.answer("<returnval>" + strconv.FormatBool(l.sessions.userOfKey(q.call.SessionID) == q.call.UserName) + "</returnval>")
}

func logBad(what string, err error) {
	if err != nil {
		log.Printf("%s: %s", what, err)
	}
}
