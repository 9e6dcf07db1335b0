package api

// AgentFleet is what an agent knows of its region's hosts: those that have a stream to it,
// or had one of late.
type AgentFleet struct {
	// Hosts are all that are counted, Connected those that have a stream.
	Hosts     int `json:"hosts"`
	Connected int `json:"connected"`
	// Agents are the URLs at which the region's agents have streams with hosts.
	Agents []string `json:"agents"`
	// GoalsAge is how long ago a seeder last said that the goals here are the newest, in
	// seconds; absent while none has. Behind are services of which it named a newer one.
	GoalsAge *float64       `json:"goalsAge,omitempty"`
	Behind   []string       `json:"behind,omitempty"`
	Services []AgentService `json:"services"`
}

// AgentService is a service of an agent's hosts.
type AgentService struct {
	Service string `json:"service"`
	// Version is that of the goal that is known; 0 for none.
	Version int64      `json:"version"`
	Hosts   HostCounts `json:"hosts"`
	// Waits says why hosts that want to switch have waited for leave for 5 s; empty where they
	// have not.
	Waits string `json:"waits,omitempty"`
}
