package client

import "github.com/landfall-dist/landfall/internal/api"

// What the calls take and answer. docs/cli.md and docs/openapi.yaml say what each field
// is; Execution.Ended reports whether nothing more will happen by itself.
type (
	Execution     = api.Execution
	Executions    = api.Executions
	Destination   = api.Destination
	Took          = api.Took
	DeployRequest = api.DeployRequest
	DeployAnswer  = api.DeployAnswer
	BuildRequest  = api.BuildRequest
	BuildAnswer   = api.BuildAnswer
	UploadAnswer  = api.UploadAnswer
	SwarmView     = api.SwarmView
	AgentStatus   = api.AgentStatus
	Limits        = api.Limits
	LimitsChange  = api.LimitsChange
	Rate          = api.Rate
	Changes       = api.Changes
	Change        = api.Change

	Services              = api.Services
	Service               = api.Service
	ServiceBuild          = api.ServiceBuild
	ServiceRegion         = api.ServiceRegion
	ServiceZone           = api.ServiceZone
	HostCounts            = api.HostCounts
	FailureGroup          = api.FailureGroup
	Policy                = api.Policy
	Deployment            = api.Deployment
	Deployments           = api.Deployments
	ServiceDeployRequest  = api.ServiceDeployRequest
	ServiceDeployAnswer   = api.ServiceDeployAnswer
	WavePlan              = api.WavePlan
	ServiceCommandRequest = api.ServiceCommandRequest
	ServiceCommandAnswer  = api.ServiceCommandAnswer
	BackPlan              = api.BackPlan
	RecallRequest         = api.RecallRequest
	Recalls               = api.Recalls
	RecalledBuild         = api.RecalledBuild
	HostViews             = api.HostViews
	HostView              = api.HostView
	HostsLogged           = api.HostsLogged
	RegionLogged          = api.RegionLogged
)

// StatusError is an answer that is not a success: its HTTP status, and the seeder's
// reason.
type StatusError = api.StatusError

// States of a Destination, and of a build at an agent.
const (
	StateQueued      = api.StateQueued
	StateUnserved    = api.StateUnserved
	StateDownloading = api.StateDownloading
	StateLanding     = api.StateLanding
	StateLanded      = api.StateLanded
	StateFailed      = api.StateFailed
	StateCancelled   = api.StateCancelled
)

// States of a Deployment; the last three are ends.
const (
	DeploymentGate     = api.DeploymentGate
	DeploymentWave     = api.DeploymentWave
	DeploymentBaking   = api.DeploymentBaking
	DeploymentPaused   = api.DeploymentPaused
	DeploymentBack     = api.DeploymentBack
	DeploymentDone     = api.DeploymentDone
	DeploymentStopped  = api.DeploymentStopped
	DeploymentWentBack = api.DeploymentWentBack
)
