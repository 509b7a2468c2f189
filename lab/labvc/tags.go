package main

// Tags of the site, created over the simulator's REST API.

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"

	"github.com/vmware/govmomi/simulator"
)

const taggingPath = "/rest/com/vmware/cis/tagging"

type tagMaker struct {
	l          *lab
	session    string
	categories map[string]string
	tags       map[string]string
}

// createTags gives every VM its tags like "category:tag".
func (l *lab) createTags() error {
	t := &tagMaker{l: l, categories: map[string]string{}, tags: map[string]string{}}
	for i := range l.site.VMs {
		v := &l.site.VMs[i]
		for _, name := range v.Tags {
			if err := t.attach(v, name); err != nil {
				return fmt.Errorf("tag %s of VM %s: %w", name, v.Name, err)
			}
		}
	}
	return nil
}

func (t *tagMaker) post(path string, body interface{}) (string, error) {
	b, err := json.Marshal(body)
	if err != nil {
		return "", err
	}
	r := httptest.NewRequest(http.MethodPost, path, bytes.NewReader(b))
	r.Header.Set("Content-Type", "application/json")
	if t.session == "" {
		r.SetBasicAuth(t.l.site.User, t.l.site.Password)
	} else {
		r.Header.Set("vmware-api-session-id", t.session)
	}
	rec := httptest.NewRecorder()
	t.l.next.ServeHTTP(rec, r)
	if rec.Code != http.StatusOK {
		return "", fmt.Errorf("%s: status %d %s", path, rec.Code, rec.Body)
	}
	var res struct {
		Value string `json:"value"`
	}
	if rec.Body.Len() == 0 {
		return "", nil
	}
	return res.Value, json.Unmarshal(rec.Body.Bytes(), &res)
}

func (t *tagMaker) attach(v *SiteVM, name string) (err error) {
	if t.session == "" {
		if t.session, err = t.post(restSessionPath, nil); err != nil {
			return err
		}
	}
	category, tag := "Site", name
	if i := strings.Index(name, ":"); i > 0 {
		category, tag = name[:i], name[i+1:]
	}
	if t.categories[category] == "" {
		spec := map[string]interface{}{"name": category, "description": "", "cardinality": "MULTIPLE", "associable_types": []string{}}
		if t.categories[category], err = t.post(taggingPath+"/category", map[string]interface{}{"create_spec": spec}); err != nil {
			return err
		}
	}
	key := category + ":" + tag
	if t.tags[key] == "" {
		spec := map[string]interface{}{"name": tag, "description": "", "category_id": t.categories[category]}
		if t.tags[key], err = t.post(taggingPath+"/tag", map[string]interface{}{"create_spec": spec}); err != nil {
			return err
		}
	}
	vm := siteVM(v)
	if vm == nil {
		return fmt.Errorf("no such VM")
	}
	_, err = t.post(taggingPath+"/tag-association/id:"+t.tags[key]+"?~action=attach",
		map[string]interface{}{"object_id": map[string]string{"type": "VirtualMachine", "id": vm.Self.Value}})
	return err
}

func siteVM(v *SiteVM) *simulator.VirtualMachine {
	for _, vm := range allVMs() {
		if vm.Config.InstanceUuid == vmUUID("50", v) {
			return vm
		}
	}
	return nil
}
