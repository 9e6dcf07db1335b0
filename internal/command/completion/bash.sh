# bash completion of APP. For this shell alone:
#   source <(APP completion bash)
# and for all that come: write it to /etc/bash_completion.d/APP
_APP_completion() {
	local IFS=$' \t\n' line=${COMP_LINE:0:COMP_POINT} current= part=${COMP_WORDS[COMP_CWORD]} kind= word= about=
	local -a words
	# Bash's own words are cut at every : and =, of which keys and URLs are full.
	read -r -d '' -a words <<<"$line"
	if [[ $line != *[[:space:]] ]]; then
		current=${words[${#words[@]}-1]}
		unset "words[${#words[@]}-1]"
	fi
	# It puts in only what comes after its last cut, though.
	[[ $part == [:=@] ]] && part=
	local cut=${current%"$part"}
	COMPREPLY=()
	{
		read -r kind
		while IFS=$'\t' read -r word about; do
			printf -v word %q "${word#"$cut"}"
			COMPREPLY+=("$word")
		done
	} < <("${COMP_WORDS[0]/#\~/$HOME}" complete "${words[@]:1}" "$current" 2>/dev/null)
	# With nothing to offer bash completes names of files.
	[[ $kind == files ]] || compopt +o default 2>/dev/null
}
complete -o default -F _APP_completion APP
