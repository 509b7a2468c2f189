package main

// Who is logged in. The simulator has sessions of its own; this table is the stricter one, and may
// forget a session that the simulator still knows.

import (
	"crypto/subtle"
	"sync"
	"time"
)

type session struct {
	user string
	used time.Time
}

type sessionTable struct {
	mu       sync.Mutex
	users    map[string]SiteUser
	idle     time.Duration // 0: a session never expires
	live     map[string]*session
	clones   map[string]string // ticket -> user
	restLive map[string]string // session id of the REST API -> user
	logins   int
	refused  int
}

func newSessionTable(site *Site) *sessionTable {
	t := &sessionTable{
		users: map[string]SiteUser{site.User: {Name: site.User, Password: site.Password}},
		idle:  time.Duration(site.SessionIdleS * float64(time.Second)),
		live:  map[string]*session{}, clones: map[string]string{}, restLive: map[string]string{},
	}
	for _, u := range site.Users {
		t.users[u.Name] = u
	}
	return t
}

func (t *sessionTable) passwordOK(user, password string) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	u, ok := t.users[user]
	ok = ok && subtle.ConstantTimeCompare([]byte(u.Password), []byte(password)) == 1
	if ok {
		t.logins++
	} else {
		t.refused++
	}
	return ok
}

func (t *sessionTable) add(cookie, user string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.live[cookie] = &session{user, time.Now()}
}

// touch answers the user of a live session and counts this as its use.
func (t *sessionTable) touch(cookie string) (string, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	s := t.live[cookie]
	if s == nil {
		return "", false
	}
	now := time.Now()
	if t.idle > 0 && now.Sub(s.used) > t.idle {
		delete(t.live, cookie)
		return "", false
	}
	s.used = now
	return s.user, true
}

func (t *sessionTable) remove(cookie string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.live, cookie)
}

func (t *sessionTable) dropAll() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	n := len(t.live)
	t.live = map[string]*session{}
	t.restLive = map[string]string{}
	return n
}

// rest notes a session of the REST API, or answers whether one is known.
func (t *sessionTable) rest(id, user string) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if user != "" && id != "" {
		t.restLive[id] = user
	}
	return t.restLive[id] != ""
}

func (t *sessionTable) denied(user, privilege string) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	u, ok := t.users[user]
	if !ok {
		return true
	}
	for _, p := range u.Denied {
		if p == privilege {
			return true
		}
	}
	return false
}

func (t *sessionTable) userOfKey(cookie string) string {
	t.mu.Lock()
	defer t.mu.Unlock()
	if s := t.live[cookie]; s != nil {
		return s.user
	}
	return ""
}

func (t *sessionTable) count() (live, logins, refused int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return len(t.live), t.logins, t.refused
}
