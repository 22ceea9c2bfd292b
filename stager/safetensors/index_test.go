package safetensors_test

import (
	"errors"
	"path"
	"strings"
	"testing"

	"github.com/headstart-serving/headstart/stager/safetensors"
)

func TestIndex(t *testing.T) {
	for text, total := range map[string]int64{
		`{"metadata":{"total_size":16},"weight_map":{"a":"m-1.safetensors","b":"sub/m.safetensors"}}`: 16,
		`{"weight_map":{"a":"m-1.safetensors","b":"x"},"more":[1]}`:                                   -1,
		`{"metadata":null,"weight_map":{"a":"m","b":"x"}}`:                                            -1,
		`{"metadata":{"total_size":1.6e1,"x":{}},"weight_map":{"a":"m","b":"x"}}`:                     16,
		`{"metadata":{"total_size":"16"},"weight_map":{"a":"m","b":"x"}}`:                             -1,
	} {
		x, err := safetensors.ParseIndex([]byte(text))
		if err != nil || x.TotalSize != total || len(x.Files) != 2 {
			t.Errorf("%s: %+v, %v", text, x, err)
		}
	}
	for text, want := range map[string]string{
		``: "EOF", `[]`: "object", `{}`: "maps no tensor", `{"weight_map":{}}`: "maps no tensor", `{"weight_map":null}`: "object",
		`{"weight_map":{"a":"m"}}x`:                      "invalid character",
		`{"weight_map":{"a":"m"}} {}`:                    "more after",
		`{"weight_map":{"a":null}}`:                      `"a" is in no file`,
		`{"weight_map":{"a":1}}`:                         `"a" is in no file`,
		`{"weight_map":{"a":"m","a":"m"}}`:               `"a" stands there twice`,
		`{"weight_map":{"a":"m"},"weight_map":{"b":""}}`: "weight_map stands there twice",
		`{"weight_map":{"a":"../m"}}`:                    `"../m"`,
		`{"weight_map":{"a":"/m"}}`:                      `"/m"`,
		`{"weight_map":{"a":"x/../m"}}`:                  `"x/../m"`,
		`{"weight_map":{"a":""}}`:                        `""`,
		`{"weight_map":{"a":"."}}`:                       `"."`,
		`{"weight_map":{"a":"x/"}}`:                      `"x/"`,
		`{"metadata":1,"weight_map":{"a":"m"}}`:          "metadata",
	} {
		_, err := safetensors.ParseIndex([]byte(text))
		if !errors.Is(err, safetensors.ErrInvalid) {
			t.Errorf("%s: %v", text, err)
		} else if !strings.Contains(err.Error(), want) && want != "invalid character" {
			t.Errorf("%s: %v, want %q", text, err, want)
		}
	}
}

// FuzzIndex: every file of an index that is accepted lies below its folder.
func FuzzIndex(f *testing.F) {
	f.Add([]byte(`{"metadata":{"total_size":16},"weight_map":{"a":"m-1.safetensors","b":"sub/m.safetensors"}}`))
	f.Add([]byte(`{"weight_map":{"a":"../m"}}`))
	f.Add([]byte(`{"metadata":{},"weight_map":{"":".","0":"000000000000"}}`)) // fuzzing found that "." was taken
	f.Fuzz(func(t *testing.T, data []byte) {
		x, err := safetensors.ParseIndex(data)
		if err != nil {
			if !errors.Is(err, safetensors.ErrInvalid) {
				t.Fatal(err)
			}
			return
		}
		if x.TotalSize < -1 || len(x.Files) == 0 {
			t.Fatalf("%+v", x)
		}
		for tensor, file := range x.Files {
			if joined := path.Join("dir", file); !strings.HasPrefix(joined, "dir/") {
				t.Fatalf("%q is in %q", tensor, file)
			}
		}
	})
}
