package staging

import (
	"path/filepath"
)

// The ways from the Hub to the bucket.
const (
	stageName = "headstart stage"
	bareName  = "bare loop"
	hfName    = "hf download + rclone copy"
)

// way is how a model gets from the Hub to the bucket.
type way struct {
	name   string
	checks string                         // that it makes, in a few words
	disk   bool                           // it keeps the model on the way
	steps  func(*bench, *site) [][]string // command lines, one after the other
	object func(*bench, string) string    // name in the bucket of a file, or of its parts NAME/OFFSET
}

func stageWay() way {
	return way{
		name: stageName, checks: "yes: sha256, git's sha1, crc32c, size, commit",
		steps: func(b *bench, _ *site) [][]string {
			return [][]string{{b.Self, "stage", b.model.Repo, "--json"}}
		},
		object: func(b *bench, path string) string { return b.model.Object(path) },
	}
}

func bareWay() way {
	return way{
		name: bareName, checks: "no; it hashes once (sha256, crc32c)",
		steps: func(b *bench, _ *site) [][]string {
			return [][]string{{b.Self, "bench", "bare", b.model.Repo, "--bucket-name", bucketName}}
		},
		object: func(_ *bench, path string) string { return "bare/" + path },
	}
}

// hfWay is what people do today, at its fastest. hf downloads eight files at a time, each in one stream,
// or in many where the Hub serves Xet; rclone sends eight at a time, each in one stream, looks for
// nothing in the bucket, and does not compare MD5, which it would have to make for that.
func hfWay() way {
	return way{
		name: hfName, checks: "size only", disk: true,
		steps: func(b *bench, s *site) [][]string {
			dir := filepath.Join(s.home, "model")
			download := []string{b.HF, "download", b.model.Repo}
			for _, f := range b.files {
				download = append(download, f.Path)
			}
			download = append(download, "--revision", b.model.Commit, "--local-dir", dir, "--max-workers", "8", "--quiet")
			upload := []string{
				b.Rclone, "copy", dir, ":gcs:" + bucketName + "/peer", "--config=", "--exclude", ".cache/**",
				"--gcs-anonymous", "--gcs-endpoint", s.bucketURL + "/storage/v1/", "--gcs-bucket-policy-only", "--gcs-no-check-bucket",
				"--transfers", "8", "--no-check-dest", "--ignore-checksum", "--retries", "1",
			}
			return [][]string{download, upload}
		},
		object: func(_ *bench, path string) string { return "peer/" + path },
	}
}
