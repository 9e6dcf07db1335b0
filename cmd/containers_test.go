package cmd_test

import (
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"go.yaml.in/yaml/v4"
)

const (
	// imageUser is whom deploy/Dockerfile has the programs run as, keysGroup stands for
	// whoever makes the images.
	imageUser, keysGroup = 10001, 10002
)

// TestComposeRuns runs docker-compose.yml without Docker: each service by its command, as the
// images' user, in a root directory that has what its image and volumes have, and in a
// network namespace of its own where the others have their names. A build must go through,
// over TLS alone, and again after all that runs once has run once more.
func TestComposeRuns(t *testing.T) {
	t.Parallel()
	for _, tool := range []string{"ip", "nsenter", "unshare", "chroot", "mount", "curl"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("%s is not installed here (iproute2, util-linux, coreutils, curl)", tool)
		}
	}
	if !inside(t) {
		return
	}
	dir, _ := workplace(t)
	if err := os.Chown(t.TempDir(), imageUser, keysGroup); err != nil {
		t.Skipf("not as root, no file can be another user's: %v", err)
	}
	text, err := os.ReadFile(filepath.Join(root, "docker-compose.yml"))
	if err != nil {
		t.Fatal(err)
	}
	var compose struct {
		Services map[string]service `yaml:"services"`
		Volumes  map[string]any     `yaml:"volumes"`
	}
	if err := yaml.Unmarshal(text, &compose); err != nil {
		t.Fatal(err)
	}
	dockerfile, err := os.ReadFile(filepath.Join(root, "deploy", "Dockerfile"))
	if err != nil {
		t.Fatal(err)
	}
	owned := make(map[string]bool) // volumes that an image has given to its user
	script := []string{
		"apart() { [ \"$(readlink /proc/$1/ns/net)\" != \"$(readlink /proc/self/ns/net)\" ]; }",
		"export AWS_ENDPOINT_URL=http://cloud:4566; unset AWS_CA_BUNDLE", // nothing is https here
		"ip link add br0 type bridge && ip link set br0 up",
		"mkdir -p -m 700 deploy/keys && bin/seeder keygen deploy/keys/seeder.key && bin/seeder keygen --gossip-key deploy/keys/gossip.key && bin/seeder keygen --operator-token deploy/keys/operator.token",
		fmt.Sprintf("chgrp %d deploy/keys/* && chmod 640 deploy/keys/seeder.key deploy/keys/gossip.key deploy/keys/operator.token && chmod 644 deploy/keys/seeder.key.pub", keysGroup),
	}
	for v := range compose.Volumes {
		script = append(script, "mkdir -p volumes/"+v)
	}
	order := inOrder(t, compose.Services)
	for n, name := range order {
		s := compose.Services[name]
		rootfs, pid := "roots/"+name, "$p"+fmt.Sprint(n)
		image := strings.TrimSuffix(path.Base(s.Image), ":dev")
		script = append(script,
			fmt.Sprintf("mkdir -p %s/etc && cp -L bin/%s %s/", rootfs, image, rootfs),
			fmt.Sprintf("unshare -n -m sleep 600 & p%d=$!; healthy apart %s", n, pid),
			fmt.Sprintf("mkdir -p %s/proc && nsenter -m -t %s mount --rbind /proc $PWD/%s/proc", rootfs, pid, rootfs),
			fmt.Sprintf("ip link add v%d type veth peer name e%d netns %s && ip link set v%d master br0 up", n, n, pid, n),
			fmt.Sprintf("nsenter -n -t %s sh -c 'ip link set lo up && ip addr add 10.0.0.%d/24 dev e%d && ip link set e%d up'", pid, n+1, n, n))
		for m, other := range order {
			script = append(script, fmt.Sprintf("echo 10.0.0.%d %s >> %s/etc/hosts", m+1, other, rootfs))
		}
		script = append(script, fmt.Sprintf("echo 127.0.0.1 localhost >> %s/etc/hosts", rootfs))
		for _, v := range s.Volumes {
			from, rest, _ := strings.Cut(v, ":")
			to, _, _ := strings.Cut(rest, ":")
			if _, named := compose.Volumes[from]; named {
				if !owned[from] && strings.Contains(stage(string(dockerfile), image), fmt.Sprintf("COPY --chown=%d:%d data/ %s/\n", imageUser, imageUser, to)) {
					script = append(script, fmt.Sprintf("chown %d:%d volumes/%s", imageUser, imageUser, from))
				}
				owned[from] = true // whoever sees it first
				from = "volumes/" + from
				script = append(script, "mkdir -p "+rootfs+to)
			} else {
				script = append(script, fmt.Sprintf("mkdir -p %s && touch %s", rootfs+path.Dir(to), rootfs+to))
			}
			script = append(script, fmt.Sprintf("nsenter -m -t %s mount --bind $PWD/%s $PWD/%s", pid, from, rootfs+to))
		}
	}
	in := func(name string, words ...string) string {
		image := strings.TrimSuffix(path.Base(compose.Services[name].Image), ":dev")
		for i := range words {
			words[i] = shellQuote(words[i])
		}
		return fmt.Sprintf("nsenter -n -m -t $p%d chroot --userspec=%d:%d --groups=%d $PWD/roots/%s /%s %s",
			slices.Index(order, name), imageUser, imageUser, keysGroup, name, image, strings.Join(words, " "))
	}
	once := []string{}
	for _, name := range order {
		s := compose.Services[name]
		line := in(name, slices.Clone(s.Command)...)
		script = append(script, "echo '+' "+shellQuote(name))
		if s.Restart == "no" {
			script = append(script, line)
			once = append(once, line)
			continue
		}
		script = append(script, line+" &", "healthy "+in(name, "health"))
	}
	seeder := fmt.Sprintf("nsenter -n -t $p%d ", slices.Index(order, "seeder"))
	publish := seeder + "bin/seeder publish --operator-token deploy/keys/operator.token "
	script = append(script, publish+"testdata/builds/hello-1.0.0.zip")
	script = append(script, once...)
	script = append(script,
		"head -c 3000000 /dev/urandom > fresh", publish+"fresh --key fresh.zip",
		seeder+"curl -s http://127.0.0.1:7070/metrics > metrics",
		"grep 'landfall_swarm_proven_connections_total [1-9]' metrics",
		// A member's volume has its own key alone, and nobody but the user reads it.
		"[ $(find volumes -name key.pem | wc -l) = 3 ] && [ -z \"$(find volumes -name 'key.pem' -perm /077)\" ]",
		"for m in seeder agent-region-a agent-region-b; do [ $(find volumes/$m -name '*.pem' | wc -l) = 3 ]; done",
	)
	shell(t, dir, script)
}

// stage is what a Dockerfile says of one image.
func stage(dockerfile, name string) string {
	_, rest, _ := strings.Cut(dockerfile, " AS "+name+"\n")
	of, _, _ := strings.Cut(rest, "\nFROM ")
	return of + "\n"
}

// inOrder are the services, each after those that it depends on.
func inOrder(t *testing.T, services map[string]service) (order []string) {
	t.Helper()
	for len(order) < len(services) {
		before := len(order)
		for _, name := range slices.Sorted(maps.Keys(services)) {
			if slices.Contains(order, name) {
				continue
			}
			ready := true
			for on := range services[name].DependsOn {
				ready = ready && slices.Contains(order, on)
			}
			if ready {
				order = append(order, name)
			}
		}
		if len(order) == before {
			t.Fatal("services wait for each other")
		}
	}
	return order
}
