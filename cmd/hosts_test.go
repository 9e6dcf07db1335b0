package cmd_test

import (
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// TestReadmeThreeHosts runs the README's lines for three hosts as they stand, each in a
// network namespace with the address that they name: they must form a cluster that a
// build goes through; then those of docs/fleet.md, by which a host joins them. S3 and
// DynamoDB are another host's.
func TestReadmeThreeHosts(t *testing.T) {
	t.Parallel()
	for _, tool := range []string{"ip", "nsenter", "unshare", "curl"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("%s is not installed here (iproute2, util-linux, curl)", tool)
		}
	}
	if !inside(t) {
		return
	}
	dir, _ := workplace(t)
	lines := blocksOf(t, filepath.Join(root, "README.md"))["For real: three roles as processes"]
	script := []string{
		"apart() { [ \"$(readlink /proc/$1/ns/net)\" != \"$(readlink /proc/self/ns/net)\" ]; }",
		"export AWS_ENDPOINT_URL=http://10.0.0.4:4566",
		"ip link add br0 type bridge && ip addr add 10.0.0.4/24 dev br0 && ip link set br0 up",
		"bin/landfall-dev cloud --dir cloud --listen 10.0.0.4:4566 &",
		"healthy bin/landfall-dev health --cloud http://10.0.0.4:4566",
	}
	for _, n := range []int{1, 2, 3, 5} {
		script = append(script,
			fmt.Sprintf("mkdir h%d && ln -s ../bin ../testdata h%d; unshare -n sleep 600 & h%d=$!; healthy apart $h%d", n, n, n, n),
			fmt.Sprintf("ip link add v%d type veth peer name e%d netns $h%d && ip link set v%d master br0 up", n, n, n, n),
			fmt.Sprintf("nsenter -n -t $h%d sh -c 'ip link set lo up && ip addr add 10.0.0.%d/24 dev e%d && ip link set e%d up'", n, n, n, n))
	}
	copied := false
	for _, line := range lines {
		line, _, _ = strings.Cut(line, "  #")
		host := 1
		for n := 2; n <= 3; n++ {
			if strings.Contains(line, fmt.Sprintf("--gossip-listen 10.0.0.%d:", n)) {
				host = n
			}
		}
		at := fmt.Sprintf("cd h%d && exec nsenter -n -t $h%d ", host, host)
		script = append(script, "echo '+' "+shellQuote(line))
		switch {
		case strings.Contains(line, " run "):
			if !copied {
				copied = true
				script = append(script, "for n in 2 3; do mkdir h$n/keys && cp -rp h1/keys/seeder.key.pub h1/keys/gossip.key h1/keys/agent-$((n-1)) h$n/keys/; done")
			}
			script = append(script, "("+at+line+") &", fmt.Sprintf("agent%d=$!", host))
			health := "bin/seeder health"
			if host > 1 {
				health = "bin/agent health"
			}
			script = append(script, fmt.Sprintf("healthy nsenter -n -t $h%d %s", host, health))
		default:
			script = append(script, "("+at+line+")")
		}
	}
	script = append(script, "nsenter -n -t $h1 curl -s http://127.0.0.1:7070/metrics > metrics", "grep 'landfall_swarm_proven_connections_total [1-9]' metrics")
	fleet := blocksOf(t, filepath.Join(root, "docs", "fleet.md"))["For real"]
	if !copied || len(fleet) != 5 {
		t.Fatalf("nothing to run: has a heading of the README changed? %q", fleet)
	}
	on := func(host int, line string) string {
		return fmt.Sprintf("(cd h%d && exec nsenter -n -t $h%d %s)", host, host, line)
	}
	script = append(script,
		on(1, fleet[0]),
		"cp -rp h1/keys/ca/regions/region-a h2/keys/region-a && mkdir h5/keys && cp -rp h1/keys/web-1 h1/keys/seeder.key.pub h5/keys/",
		"kill $agent2 && { wait $agent2 || true; }",
		on(2, fleet[1])+" &",
		"healthy nsenter -n -t $h2 bin/agent health",
		on(5, fleet[2])+" &",
		"healthy nsenter -n -t $h5 bin/agent health --agent http://127.0.0.1:7099",
		on(1, fleet[3]),
		"healthy nsenter -n -t $h5 curl --fail --silent --show-error"+strings.TrimPrefix(fleet[4], "curl"),
		"grep -c 'hello from a build' h5/srv/web/current/hello")
	out := shell(t, dir, script)
	for _, want := range []string{"region-a-builds", "region-b-builds"} {
		if !strings.Contains(out, want) {
			t.Errorf("nothing is said of %s:\n%s", want, out)
		}
	}
}
