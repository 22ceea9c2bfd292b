// Package deploy_test renders the manifests of this folder, decodes what comes out strictly, and runs
// the commands that they name with the environment that they give.
package deploy_test

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/kustomize/api/krusty"
	"sigs.k8s.io/kustomize/kyaml/filesys"
	"sigs.k8s.io/yaml"

	"github.com/headstart-serving/headstart/stager/bucket"
	"github.com/headstart-serving/headstart/stager/hub"
)

// podMonitoring is the part of Managed Service for Prometheus's resource that is used here.
// https://github.com/GoogleCloudPlatform/prometheus-engine/blob/main/doc/api.md
type podMonitoring struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata"`
	Spec              struct {
		Selector  metav1.LabelSelector `json:"selector"`
		Endpoints []struct {
			Port     string `json:"port"`
			Interval string `json:"interval"`
		} `json:"endpoints"`
	} `json:"spec"`
}

// rendered is what kustomize makes of a folder.
type rendered struct {
	jobs        []batchv1.Job
	configs     map[string]corev1.ConfigMap
	accounts    map[string]corev1.ServiceAccount
	namespaces  map[string]corev1.Namespace
	monitorings []podMonitoring
}

func render(t *testing.T, dir string) rendered {
	t.Helper()
	m, err := krusty.MakeKustomizer(krusty.MakeDefaultOptions()).Run(filesys.MakeFsOnDisk(), dir)
	if err != nil {
		t.Fatal(err)
	}
	r := rendered{configs: map[string]corev1.ConfigMap{}, accounts: map[string]corev1.ServiceAccount{}, namespaces: map[string]corev1.Namespace{}}
	for _, res := range m.Resources() {
		data, err := res.AsYAML()
		if err != nil {
			t.Fatal(err)
		}
		switch id := res.GetGvk().ApiVersion() + " " + res.GetKind(); id {
		case "batch/v1 Job":
			r.jobs = append(r.jobs, strict[batchv1.Job](t, data))
		case "v1 ConfigMap":
			r.configs[res.GetName()] = strict[corev1.ConfigMap](t, data)
		case "v1 ServiceAccount":
			r.accounts[res.GetName()] = strict[corev1.ServiceAccount](t, data)
		case "v1 Namespace":
			r.namespaces[res.GetName()] = strict[corev1.Namespace](t, data)
		case "monitoring.googleapis.com/v1 PodMonitoring":
			r.monitorings = append(r.monitorings, strict[podMonitoring](t, data))
		default:
			t.Errorf("%s: %s is decoded by nobody", dir, id)
		}
	}
	return r
}

// strict decodes an object that may have no field that its type lacks.
func strict[T any](t *testing.T, data []byte) T {
	t.Helper()
	var v T
	if err := yaml.UnmarshalStrict(data, &v); err != nil {
		t.Errorf("%v in\n%s", err, data)
	}
	return v
}

var folders = []string{"stage/base", "stage/example", "e2e/stage"}

// TestFolders finds every kustomization in the table.
func TestFolders(t *testing.T) {
	found, err := filepath.Glob("*/*/kustomization.yaml")
	if err != nil || len(found) == 0 {
		t.Fatal(found, err)
	}
	for _, f := range found {
		if dir := filepath.Dir(f); !slices.Contains(folders, dir) && dir != "stage/monitoring" { // a component of the example
			t.Errorf("%s is not checked", dir)
		}
	}
}

// TestStageJob checks what the manifest promises about the Job.
func TestStageJob(t *testing.T) {
	for _, dir := range folders {
		t.Run(dir, func(t *testing.T) {
			r := render(t, dir)
			if len(r.jobs) == 0 {
				t.Fatal("no Job")
			}
			for _, job := range r.jobs {
				pod := job.Spec.Template.Spec
				c := pod.Containers[0]
				if _, ok := r.accounts[pod.ServiceAccountName]; !ok {
					t.Errorf("service account %q is not there", pod.ServiceAccountName)
				}
				if job.Spec.ActiveDeadlineSeconds != nil || job.Spec.TTLSecondsAfterFinished == nil || pod.RestartPolicy != corev1.RestartPolicyNever ||
					c.TerminationMessagePolicy != corev1.TerminationMessageFallbackToLogsOnError || len(pod.Volumes) != 0 {
					t.Errorf("%+v", job.Spec)
				}
				if g := *pod.TerminationGracePeriodSeconds; g <= 5 {
					t.Errorf("grace period of %d s: it may need 5", g)
				}
				limits, requests := c.Resources.Limits, c.Resources.Requests
				if limits.Memory().Cmp(*requests.Memory()) != 0 || limits.Memory().Value() < 600<<20 || limits.StorageEphemeral().Value() > 200<<20 {
					t.Errorf("resources: %+v", c.Resources)
				}
				s, ps := c.SecurityContext, pod.SecurityContext
				if !*s.ReadOnlyRootFilesystem || *s.AllowPrivilegeEscalation || !slices.Contains(s.Capabilities.Drop, "ALL") || !*ps.RunAsNonRoot ||
					*ps.RunAsUser == 0 || ps.SeccompProfile.Type != corev1.SeccompProfileTypeRuntimeDefault {
					t.Errorf("security: %+v, %+v", s, ps)
				}
				for _, m := range r.monitorings {
					selector, err := metav1.LabelSelectorAsMap(&m.Spec.Selector)
					if err != nil {
						t.Fatal(err)
					}
					for k, v := range selector {
						if job.Spec.Template.Labels[k] != v {
							t.Errorf("monitoring selects %s=%s, the pod has %v", k, v, job.Spec.Template.Labels)
						}
					}
					if len(c.Ports) != 1 || m.Spec.Endpoints[0].Port != c.Ports[0].Name {
						t.Errorf("monitoring asks at %v, the pod has %v", m.Spec.Endpoints, c.Ports)
					}
				}
			}
		})
	}
}

// again is what is worth a new pod; all other failures end the Job.
var again = map[int]bool{1: true, 6: true, 130: true}

// TestExitCodes compares the Job's policy with the codes that the binary documents.
func TestExitCodes(t *testing.T) {
	help, err := exec.Command(build(t), "stage", "--help").Output()
	if err != nil {
		t.Fatal(err)
	}
	_, table, ok := strings.Cut(string(help), "Exit codes:\n")
	if !ok {
		t.Fatal("the help has no table of exit codes")
	}
	var want []int32
	for _, m := range regexp.MustCompile(`(?m)^ +(\d+)  \w`).FindAllStringSubmatch(table, -1) {
		if n, _ := strconv.Atoi(m[1]); n != 0 && !again[n] {
			want = append(want, int32(n))
		}
	}
	if len(want) < 5 {
		t.Fatalf("the table has only %v", want)
	}
	for _, dir := range folders {
		for _, job := range render(t, dir).jobs {
			var got []int32
			disruption := false
			for i, rule := range job.Spec.PodFailurePolicy.Rules {
				if on := rule.OnExitCodes; on != nil {
					if rule.Action != batchv1.PodFailurePolicyActionFailJob || on.Operator != batchv1.PodFailurePolicyOnExitCodesOpIn || *on.ContainerName != job.Spec.Template.Spec.Containers[0].Name {
						t.Errorf("%s: rule %+v", dir, rule)
					}
					got = append(got, on.Values...)
				}
				disruption = disruption || i == 0 && rule.Action == batchv1.PodFailurePolicyActionIgnore && rule.OnPodConditions[0].Type == corev1.DisruptionTarget
			}
			if !slices.Equal(got, want) || !disruption {
				t.Errorf("%s: the Job gives up at %v, want %v; disruption is ignored: %v", dir, got, want, disruption)
			}
		}
	}
}

// TestCommands runs what the container runs: with its arguments and its environment alone, but for where
// the Hub and the bucket are. The token of the Secret opens the gated model, and without it that ends
// the Job.
func TestCommands(t *testing.T) {
	headstart := build(t)
	const model, token = "acme/gated", "hf_secret"
	for _, dir := range folders {
		for _, job := range render(t, dir).jobs {
			t.Run(dir+" "+job.Name, func(t *testing.T) {
				r := render(t, dir)
				c := job.Spec.Template.Spec.Containers[0]
				if c.Command[0] != "/headstart" {
					t.Errorf("command %q, the image has /headstart", c.Command)
				}
				endpoints := serve(t, model, token)
				env := map[string]string{}
				for _, e := range c.Env {
					env[e.Name] = e.Value
					if from := e.ValueFrom; from != nil && from.ConfigMapKeyRef != nil {
						value, ok := r.configs[from.ConfigMapKeyRef.Name].Data[from.ConfigMapKeyRef.Key]
						if !ok {
							t.Errorf("%s: no ConfigMap has it", e.Name)
						}
						env[e.Name] = value
					} else if from != nil {
						if from.SecretKeyRef == nil || !*from.SecretKeyRef.Optional {
							t.Errorf("%s: %+v", e.Name, from)
						}
						env[e.Name] = token
					}
				}
				for _, name := range []string{"MODEL", "HEADSTART_BUCKET", "HF_TOKEN"} {
					if _, ok := env[name]; !ok {
						t.Errorf("%s is not set", name)
					}
				}
				env["MODEL"], env["HEADSTART_BUCKET"] = model, "gs://models"
				for k, v := range endpoints {
					env[k] = v
				}
				delete(env, "HF_TOKEN")
				if code, out := start(t, headstart, c.Args, env); code != 3 || again[code] || !strings.Contains(out, "/"+model) {
					t.Errorf("without a token: code %d: %s", code, out)
				}
				env["HF_TOKEN"] = token
				if code, out := start(t, headstart, c.Args, env); code != 0 || !strings.Contains(out, "every sha256 verified") {
					t.Errorf("code %d: %s", code, out)
				}
			})
		}
	}
}

var variable = regexp.MustCompile(`\$\((\w+)\)`)

// start runs the arguments as Kubernetes would, on a free port, and returns the exit code and what is said.
func start(t *testing.T, command string, args []string, env map[string]string) (int, string) {
	t.Helper()
	var expanded []string
	for i, a := range args {
		a = variable.ReplaceAllStringFunc(a, func(v string) string {
			value, ok := env[variable.FindStringSubmatch(v)[1]]
			if !ok {
				t.Errorf("%s is not set", v)
			}
			return value
		})
		if i > 0 && args[i-1] == "--metrics" {
			a = "127.0.0.1:0"
		}
		expanded = append(expanded, a)
	}
	cmd := exec.CommandContext(t.Context(), command, expanded...)
	cmd.Env = []string{}
	for k, v := range env {
		cmd.Env = append(cmd.Env, k+"="+v)
	}
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	_ = cmd.Run()
	return cmd.ProcessState.ExitCode(), out.String()
}

// serve serves a gated model and a bucket, and returns where.
func serve(t *testing.T, model, token string) map[string]string {
	root := t.TempDir()
	dir := filepath.Join(root, model)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	header := `{"w":{"dtype":"BF16","shape":[8],"data_offsets":[0,16]}}`
	shard := append(binary.LittleEndian.AppendUint64(nil, uint64(len(header))), header+"0123456789abcdef"...)
	for name, data := range map[string][]byte{"config.json": []byte(`{}`), "model.safetensors": shard} {
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	find, err := hub.NewDir(root)
	if err != nil {
		t.Fatal(err)
	}
	h := hub.New(hub.Config{Find: find, Tokens: map[string]string{token: "user"}, Policies: map[string]hub.Policy{model: {Gated: "manual", Granted: []string{"user"}}}})
	b, err := bucket.New(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	if err := b.CreateBucket("models"); err != nil {
		t.Fatal(err)
	}
	api, cdn, objects := httptest.NewServer(h.Handler()), httptest.NewServer(h.CDN()), httptest.NewServer(b)
	h.SetCDN(cdn.URL)
	t.Cleanup(func() {
		for _, s := range []*httptest.Server{api, cdn, objects} {
			s.Close()
		}
		b.Close()
	})
	return map[string]string{"HF_ENDPOINT": api.URL, "STORAGE_EMULATOR_HOST": objects.URL}
}

// build builds the binary that the image would have.
func build(t *testing.T) string {
	t.Helper()
	if err := binaryOnce(); err != nil {
		t.Fatal(err)
	}
	return filepath.Join(folder, "headstart")
}

var (
	folder     string // for the binary
	binaryOnce = sync.OnceValue(func() error {
		out, err := exec.Command("go", "build", "-o", folder+"/", "../cmd/headstart").CombinedOutput()
		if err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		return nil
	})
)

func TestMain(m *testing.M) {
	var err error
	if folder, err = os.MkdirTemp("", "headstart"); err != nil {
		panic(err)
	}
	code := m.Run()
	os.RemoveAll(folder)
	os.Exit(code)
}
