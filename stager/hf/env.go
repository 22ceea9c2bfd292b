package hf

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/headstart-serving/headstart/stager"
)

// FromEnv reads the variables of huggingface_hub: HF_ENDPOINT; the token from HF_TOKEN,
// HUGGING_FACE_HUB_TOKEN or the file HF_TOKEN_PATH, $HF_HOME/token, $XDG_CACHE_HOME/huggingface/token or
// ~/.cache/huggingface/token, unless HF_HUB_DISABLE_IMPLICIT_TOKEN is set; HF_HUB_DOWNLOAD_TIMEOUT in
// seconds; HF_HUB_DISABLE_XET; HF_HUB_USER_AGENT_ORIGIN. With HF_HUB_OFFLINE it fails, since there is nothing to stage from.
func FromEnv(getenv func(string) string) (Config, error) {
	for _, name := range []string{"HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"} {
		if isTrue(getenv(name)) {
			return Config{}, fmt.Errorf("%s forbids to ask the Hub: unset it to stage from there", name)
		}
	}
	c := Config{Endpoint: getenv("HF_ENDPOINT"), UserAgent: "headstart", DisableXet: isTrue(getenv("HF_HUB_DISABLE_XET"))}
	if origin := getenv("HF_HUB_USER_AGENT_ORIGIN"); origin != "" {
		c.UserAgent += "; origin/" + origin
	}
	if s := getenv("HF_HUB_DOWNLOAD_TIMEOUT"); s != "" {
		n, err := strconv.Atoi(s)
		if err != nil || n <= 0 {
			return Config{}, fmt.Errorf("HF_HUB_DOWNLOAD_TIMEOUT is %q, not a number of seconds", s)
		}
		c.Stall = time.Duration(n) * time.Second
	}
	if isTrue(getenv("HF_HUB_DISABLE_IMPLICIT_TOKEN")) {
		return c, nil
	}
	token, err := findToken(getenv)
	if err != nil {
		return Config{}, err
	}
	c.Token = token
	return c, checkToken(token)
}

func findToken(getenv func(string) string) (string, error) {
	for _, name := range []string{"HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"} {
		if t := strings.Trim(getenv(name), "\r\n "); t != "" {
			return t, nil
		}
	}
	path := tokenPath(getenv)
	if path == "" {
		return "", nil
	}
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission) {
		return "", nil // as the Hub's client does: a public model needs none
	}
	if err != nil {
		return "", fmt.Errorf("the Hub's token: %w", err)
	}
	defer f.Close()
	text := make([]byte, 4<<10)
	n, _ := f.Read(text) // an unreadable token is no token
	return strings.Trim(string(text[:n]), "\r\n "), nil
}

func tokenPath(getenv func(string) string) string {
	home := getenv("HOME")
	expand := func(path string) string {
		if rest, ok := strings.CutPrefix(path, "~/"); ok {
			return filepath.Join(home, rest)
		}
		return path
	}
	switch {
	case getenv("HF_TOKEN_PATH") != "":
		return expand(getenv("HF_TOKEN_PATH"))
	case getenv("HF_HOME") != "":
		return filepath.Join(expand(getenv("HF_HOME")), "token")
	case getenv("XDG_CACHE_HOME") != "":
		return filepath.Join(expand(getenv("XDG_CACHE_HOME")), "huggingface", "token")
	case home != "":
		return filepath.Join(home, ".cache", "huggingface", "token")
	}
	return ""
}

// isTrue reads a switch as huggingface_hub does.
func isTrue(s string) bool {
	switch strings.ToUpper(s) {
	case "1", "ON", "YES", "TRUE":
		return true
	}
	return false
}

// checkToken refuses a token that cannot stand in a header, and does not say what it is.
func checkToken(token string) error {
	if strings.ContainsFunc(token, func(r rune) bool { return r <= ' ' || r >= 0x7f }) {
		return stager.Fail(fs.ErrPermission, "the Hub's token has a space, a line break or another character that no token has: set HF_TOKEN to the token alone")
	}
	return nil
}
