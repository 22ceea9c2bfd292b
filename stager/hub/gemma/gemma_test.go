package gemma

import (
	"testing"

	"github.com/headstart-serving/headstart/stager/hub"
)

var _ hub.Repo = (*Repo)(nil)

// published are the sizes of files of the real repositories.
var published = map[string]map[string]int64{
	"270m": {"model.safetensors": 536_223_056},
	"1b":   {"model.safetensors": 1_999_811_208, "config.json": 899, "generation_config.json": 215, "special_tokens_map.json": 662, "added_tokens.json": 35},
	"4b": {"config.json": 855,
		"model-00001-of-00002.safetensors": 4_961_251_752,
		"model-00002-of-00002.safetensors": 3_639_026_128},
	"12b": {"config.json": 916,
		"model-00001-of-00005.safetensors": 4_979_902_192,
		"model-00002-of-00005.safetensors": 4_931_296_592,
		"model-00003-of-00005.safetensors": 4_931_296_656,
		"model-00004-of-00005.safetensors": 4_931_296_656,
		"model-00005-of-00005.safetensors": 4_601_000_928},
	"27b": {"config.json": 972,
		"model-00001-of-00012.safetensors": 4_854_573_696,
		"model-00002-of-00012.safetensors": 4_954_792_944,
		"model-00003-of-00012.safetensors": 4_954_792_976,
		"model-00004-of-00012.safetensors": 4_954_793_016,
		"model-00011-of-00012.safetensors": 4_954_793_016,
		"model-00012-of-00012.safetensors": 462_476_696},
}

func TestSizes(t *testing.T) {
	for size, want := range published {
		r, err := New(size, 0)
		if err != nil {
			t.Fatal(err)
		}
		got := map[string]int64{}
		for _, f := range r.Files() {
			got[f.Path] = f.Size
		}
		for p, n := range want {
			if got[p] != n {
				t.Errorf("%s %s: %d bytes, published %d", size, p, got[p], n)
			}
		}
	}
}
