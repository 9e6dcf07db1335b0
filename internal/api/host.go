package api

// HostStatus is what a host answers of itself: GET /status of `agent host`.
type HostStatus struct {
	Host    string            `json:"host"`
	Region  string            `json:"region,omitempty"` // empty before an agent has said it
	Zone    string            `json:"zone,omitempty"`
	Labels  map[string]string `json:"labels,omitempty"`
	Version string            `json:"version"`
	// Agent is the URL of the agent that it has a stream to; empty for none.
	Agent string `json:"agent,omitempty"`
	// NotReady is why it is not ready: a service has run no build that a goal names, is switching, or is not healthy.
	NotReady string `json:"notReady,omitempty"`
	// GoalAge is how many seconds ago a seeder last said that the goals here are the newest;
	// absent where none has. Behind are services of which there is a newer goal, and
	// ".recalls" where there is a newer list of recalled builds.
	GoalAge  *float64      `json:"goalAge,omitempty"`
	Behind   []string      `json:"behind,omitempty"`
	Services []HostService `json:"services"`
	Builds   []HostBuild   `json:"builds"`
}

// HostService is how one service of a host stands.
type HostService struct {
	Service string `json:"service"`
	// Goal is the version of the goal that it follows; 0 for none yet.
	Goal  int64  `json:"goal"`
	State string `json:"state"`
	// Running is the executionId of the build that current points to, Key its key; Wanted is
	// the executionId of the one that is to run. Empty for none.
	Running string `json:"running,omitempty"`
	Key     string `json:"key,omitempty"`
	Wanted  string `json:"wanted,omitempty"`
	// Phase is where the last switch is or has ended, Attempt how often it was taken up.
	Phase   string `json:"phase,omitempty"`
	Attempt int    `json:"attempt,omitempty"`
	// Error is why it does not run what is wanted, Output the end of what a hook printed.
	Error  string `json:"error,omitempty"`
	Output string `json:"output,omitempty"`
	// Releases are the executionIds of what is in its place, the newest first.
	Releases []string `json:"releases"`
}

// HostBuild is a build that a host fetches, or has.
type HostBuild struct {
	ExecutionID string `json:"executionId"`
	Key         string `json:"key"`
	// Size and Bytes, which are here and verified, are in bytes.
	Size  int64 `json:"size"`
	Bytes int64 `json:"bytes"`
	Whole bool  `json:"whole"`
	// DownloadedBytes came from peers, UploadedBytes went to them, since the start.
	DownloadedBytes int64 `json:"downloadedBytes"`
	UploadedBytes   int64 `json:"uploadedBytes"`
	// Error is why nothing comes at the moment.
	Error string `json:"error,omitempty"`
}
