"""What several peers' transcripts prove. Needs no key but those in the manifest, and no peer."""
