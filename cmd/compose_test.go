package cmd_test

import (
	"net"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"go.yaml.in/yaml/v4"
)

// service is what the test reads of one in docker-compose.yml.
type service struct {
	Image     string         `yaml:"image"`
	Command   []string       `yaml:"command"`
	Volumes   []string       `yaml:"volumes"`
	Ports     []string       `yaml:"ports"`
	Restart   string         `yaml:"restart"`
	DependsOn map[string]any `yaml:"depends_on"`
}

// flag is the value of a flag on the service's command line, "" without one.
func (s service) flag(name string) string {
	for i, word := range s.Command {
		if value, ok := strings.CutPrefix(word, "--"+name+"="); ok {
			return value
		}
		if word == "--"+name && i+1 < len(s.Command) {
			return s.Command[i+1]
		}
	}
	return ""
}

// files are those of the host that a service sees, and where.
func (s service) files() map[string]string {
	files := make(map[string]string)
	for _, v := range s.Volumes {
		from, to, _ := strings.Cut(v, ":")
		if strings.HasPrefix(from, ".") || strings.HasPrefix(from, "/") {
			files[path.Clean(from)], _, _ = strings.Cut(to, ":")
		}
	}
	return files
}

// TestCompose holds docker-compose.yml to what its members may know and be asked.
func TestCompose(t *testing.T) {
	text, err := os.ReadFile(filepath.Join(root, "docker-compose.yml"))
	if err != nil {
		t.Fatal(err)
	}
	var compose struct {
		Services map[string]service `yaml:"services"`
	}
	if err := yaml.Unmarshal(text, &compose); err != nil {
		t.Fatal(err)
	}
	for wrong, why := range faults(compose.Services) {
		t.Errorf("docker-compose.yml, %s: %s", wrong, why)
	}
	// The test itself: what it is to find.
	seeder, agent := compose.Services["seeder"], compose.Services["agent-region-a"]
	agent.Volumes = []string{"./deploy/keys:/keys:ro"}
	seeder.Command = slices.DeleteFunc(slices.Clone(seeder.Command), func(w string) bool { return strings.HasPrefix(w, "--operator-token") })
	if found := faults(map[string]service{"seeder": seeder, "agent": agent}); len(found) != 2 {
		t.Errorf("an agent with all keys, and a seeder without a token: %v", found)
	}
}

// faults says of each service what it may not have.
func faults(services map[string]service) map[string]string {
	faults := make(map[string]string)
	daemons := 0
	for name, s := range services {
		if len(s.Command) == 0 || s.Command[0] != "run" {
			continue
		}
		daemons++
		isSeeder := strings.Contains(s.Image, "/seeder:")
		allowed := []string{"deploy/keys/seeder.key.pub", "deploy/keys/gossip.key"}
		if isSeeder {
			allowed = []string{"deploy/keys/seeder.key", "deploy/keys/gossip.key", "deploy/keys/operator.token"}
		}
		for file := range s.files() {
			if !slices.Contains(allowed, file) {
				faults[name] = "sees " + file
			}
		}
		for _, flag := range []string{"signing-key", "gossip-key", "operator-token", "trust"} {
			inside := s.flag(flag)
			mounted := false
			for _, to := range s.files() {
				mounted = mounted || to == inside
			}
			if inside != "" && !mounted && faults[name] == "" {
				faults[name] = "--" + flag + " names a file that is not there"
			}
		}
		if s.flag("tls") != "require" || s.flag("identity") != "/data/identity" {
			faults[name] = "it takes in members without certificates"
		}
		host, _, err := net.SplitHostPort(s.flag("listen"))
		if err != nil {
			faults[name] = "--listen: " + err.Error()
		}
		if ip := net.ParseIP(host); isSeeder && !ip.IsLoopback() && s.flag("operator-token") == "" {
			faults[name] = "everybody may publish through it"
		}
		for _, p := range s.Ports {
			if !strings.HasPrefix(p, "127.0.0.1:") {
				faults[name] = "its port " + p + " is open beyond this machine"
			}
		}
	}
	if daemons < 2 {
		faults["all"] = "the daemons are not found"
	}
	return faults
}
