package hf_test

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/headstart-serving/headstart/stager/hf"
)

func TestFromEnv(t *testing.T) {
	dir := t.TempDir()
	for path, text := range map[string]string{"home/.cache/huggingface/token": "from-cache\n", "hfhome/token": " from-hf-home\r\n", "xdg/huggingface/token": "from-xdg", "file": "from-file\n", "bad": "two\nlines"} {
		path = filepath.Join(dir, path)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	home, hfHome, xdg := "HOME="+dir+"/home", "HF_HOME="+dir+"/hfhome", "XDG_CACHE_HOME="+dir+"/xdg"
	for _, test := range []struct {
		env         string
		token, fail string
	}{
		{"", "", ""},
		{home, "from-cache", ""},
		{home + " " + xdg, "from-xdg", ""},
		{home + " " + xdg + " " + hfHome, "from-hf-home", ""},
		{home + " HF_HOME=~/.cache/huggingface", "from-cache", ""},
		{hfHome + " HF_TOKEN_PATH=" + dir + "/file", "from-file", ""},
		{hfHome + " HF_TOKEN_PATH=" + dir + "/none", "", ""},
		{hfHome + " HUGGING_FACE_HUB_TOKEN=old", "old", ""},
		{hfHome + " HUGGING_FACE_HUB_TOKEN=old HF_TOKEN=new", "new", ""},
		{hfHome + " HF_TOKEN=new HF_HUB_DISABLE_IMPLICIT_TOKEN=1", "", ""},
		{hfHome + " HF_TOKEN=new HF_HUB_DISABLE_IMPLICIT_TOKEN=0", "new", ""},
		{"HF_TOKEN_PATH=" + dir + "/bad", "", "HF_TOKEN"},
		{"HF_HUB_OFFLINE=yes", "", "HF_HUB_OFFLINE"},
		{"TRANSFORMERS_OFFLINE=1", "", "TRANSFORMERS_OFFLINE"},
		{"HF_HUB_DOWNLOAD_TIMEOUT=ten", "", "HF_HUB_DOWNLOAD_TIMEOUT"},
	} {
		c, err := hf.FromEnv(func(name string) string {
			for v := range strings.FieldsSeq(test.env) {
				if value, ok := strings.CutPrefix(v, name+"="); ok {
					return value
				}
			}
			return ""
		})
		if test.fail != "" {
			if err == nil || !strings.Contains(err.Error(), test.fail) || strings.Contains(err.Error(), "lines") {
				t.Errorf("%s: %v", test.env, err)
			}
		} else if err != nil || c.Token != test.token {
			t.Errorf("%s: token %q, %v; want %q", test.env, c.Token, err, test.token)
		}
	}
	env := map[string]string{"HF_ENDPOINT": "http://hub:8080/", "HF_HUB_DOWNLOAD_TIMEOUT": "7", "HF_HUB_USER_AGENT_ORIGIN": "ours", "HF_TOKEN": "hf_a\n"}
	c, err := hf.FromEnv(func(name string) string { return env[name] })
	if err != nil || c.Endpoint != "http://hub:8080/" || c.Stall != 7*time.Second || c.UserAgent != "headstart; origin/ours" || c.Token != "hf_a" {
		t.Errorf("%+v, %v", c, err)
	}
}

// TestTokenThatIsNone refuses what cannot stand in a header, wherever it comes from, and does not repeat it.
func TestTokenThatIsNone(t *testing.T) {
	for _, token := range []string{"hf_s3cret\nX-Evil: 1", "hf_s3cret\r\n\r\nGET /", "hf_s3cret\x00", "hf_\ts3cret", "hf_s3\x1b[31mcret", "hf_s3cret\x7f", "hf_s3crét", "\ufeffhf_s3cret", "hf_s3cret hf_other"} {
		path := filepath.Join(t.TempDir(), "token")
		if err := os.WriteFile(path, []byte(token), 0o600); err != nil {
			t.Fatal(err)
		}
		for name, value := range map[string]string{"HF_TOKEN": token, "HUGGING_FACE_HUB_TOKEN": token, "HF_TOKEN_PATH": path} {
			_, err := hf.FromEnv(func(n string) string { return map[string]string{name: value}[n] })
			if !errors.Is(err, fs.ErrPermission) || !strings.Contains(err.Error(), "HF_TOKEN") || strings.Contains(err.Error(), "cret") || strings.Contains(err.Error(), "\n") {
				t.Errorf("%s=%q: %v", name, token, err)
			}
		}
		if _, err := hf.New(hf.Config{Token: token}); !errors.Is(err, fs.ErrPermission) {
			t.Errorf("%q: %v", token, err)
		}
	}
}
