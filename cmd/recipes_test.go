package cmd_test

import (
	"archive/tar"
	"archive/zip"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/landfall-dist/landfall/internal/processtest"
)

// fenced are the code blocks under a heading of the third level in docs/fleet.md.
func fenced(t *testing.T, heading string) (blocks []string) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(root, "docs", "fleet.md"))
	if err != nil {
		t.Fatal(err)
	}
	_, section, ok := strings.Cut(string(text), "\n### "+heading+"\n")
	if !ok {
		t.Fatalf("docs/fleet.md has no %q", heading)
	}
	for i, part := range strings.Split(section, "\n```") {
		if strings.Contains(part, "\n## ") || i%2 == 0 && strings.Contains(part, "\n### ") {
			break
		}
		if _, block, ok := strings.Cut(part, "\n"); ok && i%2 == 1 {
			blocks = append(blocks, block+"\n")
		}
	}
	return blocks
}

// placed is a recipe with the test's own addresses and directories.
func placed(dir, recipe string) string {
	return strings.NewReplacer(
		"/usr/local/bin/", dir+"/bin/", "/srv/landfall", dir+"/srv", "https://10.0.0.2:7090", "https://127.0.0.1:7091",
		"/etc/landfall/seeder.key.pub", dir+"/.landfall/seeder.key.pub", "/etc/landfall/identity", dir+"/web-17", "/etc/landfall/run-image", dir+"/run-image",
	).Replace(recipe)
}

const (
	// managerConfig leaves alone what cgroups there are beside those that units are in.
	managerConfig = "[Manager]\nDefaultCPUAccounting=no\nDefaultMemoryAccounting=no\nDefaultTasksAccounting=no\nDefaultIOAccounting=no\n"

	issueHost = "bin/seeder ca issue host region-a web-17 --dir .landfall/ca --out web-17"
	// ready waits until the recipe's host runs its goal.
	ready  = "healthy curl --fail --silent --show-error http://127.0.0.1:7099/readyz"
	answer = "healthy curl --fail --silent --show-error http://127.0.0.1:8080/"
	// known waits until the region's agent has a stream with it, beside that of the demo's host.
	known = `healthy sh -c 'curl --silent http://127.0.0.1:7081/status | grep "\"connected\": 2"'`
)

func deployed(key string) string {
	return "bin/seeder deploy web " + key + " --wave 100% --bake 0s --max-failed 0"
}

// TestSystemdRecipe has a systemd of its own, the user's kind in namespaces of its own, run the
// units of docs/fleet.md: the service is restarted with each build, and goes on when the host's
// daemon is restarted, and so does what a hook has left running.
func TestSystemdRecipe(t *testing.T) {
	t.Parallel()
	const systemd = "/lib/systemd/systemd"
	for _, tool := range []string{systemd, "systemctl", "unshare", "mount", "curl"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("%s is not installed here (systemd, util-linux, curl)", tool)
		}
	}
	if os.Getuid() != 0 {
		t.Skip("only root can give a systemd its cgroup")
	}
	if !inside(t) {
		return
	}
	dir, build := workplace(t)
	blocks := fenced(t, "A systemd unit")
	if len(blocks) != 3 || !strings.Contains(blocks[0], "KillMode=process\n") || !strings.HasPrefix(blocks[2], "systemctl daemon-reload\n") {
		t.Fatalf("docs/fleet.md has other blocks than this test knows: %q", blocks)
	}
	groups := newCgroup(t)
	units := filepath.Join(dir, "config", "systemd", "user")
	if err := errors.Join(os.MkdirAll(units, 0o755), os.Mkdir(filepath.Join(dir, "tools"), 0o755), os.Mkdir(filepath.Join(dir, "run"), 0o700)); err != nil {
		t.Fatal(err)
	}
	// One thing more than the recipe has: a hook that leaves something running.
	const left = " --before 'sleep 1000 >/dev/null 2>&1 </dev/null & echo $$! >left'"
	hostUnit := strings.Replace(blocks[0], " --unpack ", left+" --unpack ", 1)
	for name, text := range map[string]string{
		filepath.Join(units, "landfall-host.service"):        placed(dir, hostUnit),
		filepath.Join(units, "web.service"):                  placed(dir, blocks[1]),
		filepath.Join(dir, "config", "systemd", "user.conf"): managerConfig + "DefaultEnvironment=PATH=" + dir + "/tools:/usr/sbin:/usr/bin:/sbin:/bin\n",
		filepath.Join(dir, "tools", "systemctl"):             "#!/bin/sh\nexec " + lookPath(t, "systemctl") + " --user \"$@\"\n",
		filepath.Join(dir, "in"):                             inSystemd(dir, systemd, groups, strings.TrimSpace(blocks[2])),
	} {
		mode := os.FileMode(0o644)
		if strings.HasPrefix(text, "#!") {
			mode = 0o755
		}
		if err := os.WriteFile(name, []byte(text), mode); err != nil {
			t.Fatal(err)
		}
	}
	demo := startDemo(t, dir, build, "--hosts", "1")
	shell(t, dir, []string{
		"export AWS_ENDPOINT_URL=http://127.0.0.1:4566",
		issueHost,
		"exec unshare --mount --pid --fork --mount-proc --kill-child ./in", // in the shell's place, so that it ends with it
	})
	interrupt(t, demo)
}

// inSystemd is the script that runs in the namespaces: a systemd, and what a person does.
func inSystemd(dir, systemd string, groups []string, start string) string {
	lines := []string{
		"#!/bin/bash", "set -eu", "cd " + dir,
		"healthy() { for i in $(seq 1200); do \"$@\" >/dev/null 2>&1 && return; sleep 0.05; done; \"$@\"; }",
		"mount --make-rprivate /", "mount -t tmpfs tmpfs /run", "mkdir -p /run/systemd/system", // a sign that systemd has booted
		"export XDG_RUNTIME_DIR=" + dir + "/run XDG_CONFIG_HOME=" + dir + "/config HOME=" + dir + " PATH=" + dir + "/tools:$PATH",
	}
	for _, g := range groups {
		lines = append(lines, "echo $$ >"+g+"/cgroup.procs")
	}
	lines = append(lines,
		systemd+" --user --log-level=notice --log-target=console >systemd.log 2>&1 & manager=$!",
		"trap 'r=$?; [ $r = 0 ] || { cat systemd.log; systemctl status --no-pager --lines=50 landfall-host web; } || true; kill $manager; wait $manager || true; exit $r' EXIT",
		"healthy systemctl list-units",
		start,
		// Nothing runs yet; the units are there.
		"systemctl is-active landfall-host",
		"if systemctl is-active web; then exit 1; fi",
		known,
		deployed("hello-1.0.0.zip"), ready, answer,
		"first=$(systemctl show --property MainPID --value web); [ $first != 0 ]",
		// Another build: the unit is restarted with it.
		"bin/seeder publish testdata/builds/hello-1.0.0.zip --key hello-1.1.0.zip",
		deployed("hello-1.1.0.zip"), ready, answer,
		"second=$(systemctl show --property MainPID --value web); [ $second != $first ]",
		"[ $(readlink /proc/$second/exe) = $(readlink -f srv/web/current/hello) ]",
		// The daemon is restarted: the service goes on, and what a hook has started.
		"daemon=$(systemctl show --property MainPID --value landfall-host)",
		"kill -0 $(cat srv/web/left)",
		"systemctl restart landfall-host", ready,
		"[ $(systemctl show --property MainPID --value landfall-host) != $daemon ]",
		"[ $(systemctl show --property MainPID --value web) = $second ]",
		"kill -0 $(cat srv/web/left)",
		answer,
		// As after a boot, when no daemon is there: the service runs the same build.
		"systemctl stop landfall-host web",
		"systemctl start web",
		answer,
		"[ $(readlink /proc/$(systemctl show --property MainPID --value web)/exe) = $(readlink -f srv/web/current/hello) ]",
	)
	return strings.Join(lines, "\n") + "\n"
}

func lookPath(t *testing.T, name string) string {
	t.Helper()
	at, err := exec.LookPath(name)
	if err != nil {
		t.Fatal(err)
	}
	return at
}

// newCgroup makes a cgroup of the test's own in the hierarchies that systemd keeps its units
// in, and removes it with all below it at the end.
func newCgroup(t *testing.T) (dirs []string) {
	t.Helper()
	own, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		t.Skipf("no cgroups: %v", err)
	}
	mounts, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(mounts)) {
		f := strings.Fields(line) // what, where, type, options
		named := f[2] == "cgroup" && strings.Contains(f[3], "name=systemd")
		if f[2] != "cgroup2" && !named {
			continue
		}
		for of := range strings.Lines(string(own)) {
			fields := strings.SplitN(strings.TrimSpace(of), ":", 3)
			if (fields[1] == "name=systemd") != named || (fields[0] == "0") == named {
				continue
			}
			dir := filepath.Join(f[1], fields[2], fmt.Sprintf("landfall-test-%d", os.Getpid()))
			if err := os.Mkdir(dir, 0o755); err != nil {
				t.Skipf("no cgroup can be made here: %v", err)
			}
			dirs = append(dirs, dir)
		}
	}
	t.Cleanup(func() {
		for _, top := range dirs {
			var all []string
			_ = filepath.WalkDir(top, func(p string, d fs.DirEntry, err error) error {
				if err == nil && d.IsDir() {
					all = append(all, p)
				}
				return nil
			})
			for i := len(all) - 1; i >= 0; i-- {
				if err := os.Remove(all[i]); err != nil && !errors.Is(err, fs.ErrNotExist) {
					t.Logf("a cgroup stays: %v", err)
				}
			}
		}
	})
	if len(dirs) == 0 {
		t.Skip("there is no cgroup hierarchy that a systemd can use")
	}
	return dirs
}

// TestImageRecipe runs the recipe of docs/fleet.md for OCI images, with a stand-in for the
// engine: an image takes the place of the one before, which comes back when the next one is
// not healthy.
func TestImageRecipe(t *testing.T) {
	t.Parallel()
	if _, err := exec.LookPath("curl"); err != nil {
		t.Skip("curl is not installed here")
	}
	if !inside(t) {
		return
	}
	dir, build := workplace(t)
	blocks := fenced(t, "An OCI image")
	if len(blocks) != 2 || !strings.HasPrefix(blocks[0], "#!/bin/sh\n") || !strings.HasPrefix(blocks[1], "agent host ") {
		t.Fatalf("docs/fleet.md has other blocks than this test knows: %q", blocks)
	}
	engine := filepath.Join(dir, "engine")
	t.Cleanup(func() { _ = removeContainer(engine, "web") })
	good, bad := ociImage(t, build, "/hello"), ociImage(t, build, "/none")
	for name, content := range map[string][]byte{
		"run-image": []byte(blocks[0]), "web-1.0.tar": good, "web-2.0.tar": append(bytes.Clone(good), make([]byte, 512)...), "web-3.0.tar": bad,
		"docker": fmt.Appendf(nil, "#!/bin/sh\n%s=%s exec %s \"$@\"\n", engineEnv, engine, os.Args[0]),
	} {
		if err := os.WriteFile(filepath.Join(dir, name), content, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	demo := startDemo(t, dir, build, "--hosts", "1", "--services", "other")
	const container = "cat engine/containers/web"
	shell(t, dir, []string{
		"export AWS_ENDPOINT_URL=http://127.0.0.1:4566",
		issueHost,
		"for n in 1 2 3; do bin/seeder publish web-$n.0.tar; done",
	})
	host, err := processtest.Start(processtest.Config{
		Name: "host", Log: filepath.Join(dir, "host.log"), Dir: dir, Env: []string{"PATH=" + dir + ":" + os.Getenv("PATH")},
		Args: append([]string{filepath.Join(dir, "bin/agent")}, strings.Fields(placed(dir, blocks[1]))[1:]...),
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { host.End(syscall.SIGKILL) })
	shell(t, dir, []string{
		known,
		deployed("web-1.0.tar"), ready, answer, "first=$(" + container + ")",
		deployed("web-2.0.tar"), ready, answer, "second=$(" + container + "); link=$(readlink srv/web/current)",
		"[ $first != $second ]; [ -z \"$(tr -d '\\0' </proc/$first/cmdline 2>/dev/null)\" ]",
		"if " + deployed("web-3.0.tar") + "; then exit 1; fi",
		"bin/seeder service web | tee said; grep 'exec: exit status' said",
		answer, "third=$(" + container + "); [ $third != $second ]; [ $(readlink srv/web/current) = $link ]",
	})
	interrupt(t, host)
	interrupt(t, demo)
}

// ociImage is an image with the program of a build, as a tar of the OCI layout.
func ociImage(t *testing.T, build, entry string) []byte {
	t.Helper()
	z, err := zip.OpenReader(build)
	if err != nil {
		t.Fatal(err)
	}
	defer z.Close()
	program, err := fs.ReadFile(z, "hello")
	if err != nil {
		t.Fatal(err)
	}
	layer := tarOf(t, map[string][]byte{"hello": program})
	files := make(map[string][]byte)
	type descriptor struct {
		MediaType string `json:"mediaType"`
		Digest    string `json:"digest"`
		Size      int    `json:"size"`

		Annotations map[string]string `json:"annotations,omitempty"`
	}
	blob := func(kind string, b []byte) descriptor {
		sum := sha256.Sum256(b)
		files["blobs/sha256/"+hex.EncodeToString(sum[:])] = b
		return descriptor{MediaType: "application/vnd.oci.image." + kind, Digest: "sha256:" + hex.EncodeToString(sum[:]), Size: len(b)}
	}
	encode := func(v any) []byte {
		b, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	l := blob("layer.v1.tar", layer)
	config := blob("config.v1+json", encode(map[string]any{
		"architecture": "amd64", "os": "linux", "config": map[string]any{"Entrypoint": []string{entry}},
		"rootfs": map[string]any{"type": "layers", "diff_ids": []string{l.Digest}},
	}))
	manifest := blob("manifest.v1+json", encode(map[string]any{"schemaVersion": 2, "config": config, "layers": []descriptor{l}}))
	manifest.Annotations = map[string]string{"org.opencontainers.image.ref.name": "web:latest"}
	files["index.json"] = encode(map[string]any{"schemaVersion": 2, "manifests": []descriptor{manifest}})
	files["oci-layout"] = []byte(`{"imageLayoutVersion":"1.0.0"}`)
	return tarOf(t, files)
}

func tarOf(t *testing.T, files map[string][]byte) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for name, content := range files {
		err := w.WriteHeader(&tar.Header{Name: name, Mode: 0o755, Size: int64(len(content))})
		if err == nil {
			_, err = w.Write(content)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// engineEnv makes the test's binary a stand-in for a container engine, which keeps what it
// has in that directory.
const engineEnv = "LANDFALL_TEST_ENGINE"

// engine does what the recipe asks of docker: load an image, remove a container, run one.
func engine(dir string, args []string) error {
	switch command := strings.Join(args, " "); {
	case strings.HasPrefix(command, "load --quiet --input "):
		name, err := loadImage(dir, args[3])
		if err == nil {
			fmt.Println("Loaded image: " + name)
		}
		return err
	case command == "rm --force web":
		return removeContainer(dir, "web")
	case strings.HasPrefix(command, "run --detach --name web --restart unless-stopped --network host "):
		return runContainer(dir, "web", args[len(args)-1])
	}
	return fmt.Errorf("this engine does not know %q", args)
}

// loadImage unpacks an image whose digests are right, and returns its name.
func loadImage(dir, file string) (name string, err error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return "", err
	}
	files, err := untar(b)
	if err != nil {
		return "", err
	}
	blob := func(digest string) ([]byte, error) {
		b := files["blobs/sha256/"+strings.TrimPrefix(digest, "sha256:")]
		if sum := sha256.Sum256(b); digest != "sha256:"+hex.EncodeToString(sum[:]) {
			return nil, fmt.Errorf("blob %s is missing, or another", digest)
		}
		return b, nil
	}
	decode := func(digest string, into any) error {
		b, err := blob(digest)
		if err != nil {
			return err
		}
		return json.Unmarshal(b, into)
	}
	var index struct {
		Manifests []struct {
			Digest      string
			Annotations map[string]string
		}
	}
	var manifest struct {
		Config struct{ Digest string }
		Layers []struct{ Digest string }
	}
	var config struct {
		Config struct{ Entrypoint []string }
	}
	if err := json.Unmarshal(files["index.json"], &index); err != nil || len(index.Manifests) != 1 {
		return "", fmt.Errorf("no index of one image: %w", err)
	}
	name = index.Manifests[0].Annotations["org.opencontainers.image.ref.name"]
	if err := decode(index.Manifests[0].Digest, &manifest); err != nil {
		return "", err
	}
	if err := decode(manifest.Config.Digest, &config); err != nil {
		return "", err
	}
	image := filepath.Join(dir, "images", name)
	if err := errors.Join(os.RemoveAll(image), os.MkdirAll(image, 0o755)); err != nil {
		return "", err
	}
	for _, l := range manifest.Layers {
		b, err := blob(l.Digest)
		if err != nil {
			return "", err
		}
		content, err := untar(b)
		if err != nil {
			return "", err
		}
		for at, b := range content {
			if err := os.WriteFile(filepath.Join(image, path.Base(at)), b, 0o755); err != nil {
				return "", err
			}
		}
	}
	return name, os.WriteFile(filepath.Join(image, ".entry"), []byte(strings.Join(config.Config.Entrypoint, " ")), 0o644)
}

func untar(b []byte) (map[string][]byte, error) {
	files := make(map[string][]byte)
	r := tar.NewReader(bytes.NewReader(b))
	for {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return files, nil
		}
		if err != nil {
			return nil, err
		}
		if files[h.Name], err = io.ReadAll(r); err != nil {
			return nil, err
		}
	}
}

// runContainer starts an image's entry point as a process that outlives this one.
func runContainer(dir, name, image string) error {
	at := filepath.Join(dir, "containers", name)
	if _, err := os.Stat(at); err == nil {
		return fmt.Errorf("there is a container %s already", name)
	}
	entry, err := os.ReadFile(filepath.Join(dir, "images", image, ".entry"))
	if err != nil {
		return err
	}
	c := exec.Command(filepath.Join(dir, "images", image, string(entry)))
	c.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := errors.Join(os.MkdirAll(filepath.Dir(at), 0o755), c.Start()); err != nil {
		return err
	}
	return os.WriteFile(at, []byte(strconv.Itoa(c.Process.Pid)), 0o644)
}

func removeContainer(dir, name string) error {
	at := filepath.Join(dir, "containers", name)
	text, err := os.ReadFile(at)
	if err != nil {
		return err
	}
	pid, err := strconv.Atoi(string(text))
	if err == nil {
		err = syscall.Kill(pid, syscall.SIGKILL)
	}
	for { // until it has let go of its port: one that has ended has no words any more
		if words, gone := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid)); gone != nil || len(words) == 0 {
			break
		}
		time.Sleep(10 * time.Millisecond) // between looks
	}
	return errors.Join(err, os.Remove(at))
}
